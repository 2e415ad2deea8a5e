"""A small compiled executor for CPUs: C sources, how they are built, and the structures that they are called with."""
