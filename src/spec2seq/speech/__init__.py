"""What a model hears, written down."""
