"""Training of verifiers and little models from recipes."""

from spec2seq.training.recipe import Recipe, load_recipe
from spec2seq.training.run import TrainResult, train

__all__ = ["Recipe", "TrainResult", "load_recipe", "train"]
