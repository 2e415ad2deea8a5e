"""Live Transformers modules for the tests of the drop-in."""

import copy

import tiny
import torch

CAP = 16


def fresh(family: str, seed: int = 0):
    """A tiny module that a test may change; the session's own is shared."""
    return copy.deepcopy(tiny.transformers_model(family, seed))


def noisy(module, noise: float = 0.02):
    """An assistant that often agrees with `module`."""
    torch.manual_seed(1)
    little = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in little.parameters():
            if parameter.dim() == 2:
                parameter += noise * parameter.std() * torch.randn_like(parameter)
    return little


def inputs(module, count: int = 4, seed: int = 75) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of a batch of sources of different lengths."""
    return tiny.encoder_inputs(module, tiny.sources(module, count, seed))


def ends(sequences: torch.Tensor, pad: int, eos: int) -> set[int]:
    """The lengths of the rows, to see that they end at different steps."""
    return {1 + row.index(eos) if eos in row else len(row) for row in sequences[:, 1:].tolist()}
