"""Glancing training of the paper's drafter (SpecDec: Xia et al. 2023, section 3; glancing: Qian et al. 2021).

A sample is a random prefix of what the verifier wrote with a block of mask slots behind it. A first pass counts the
slots that the drafter gets wrong; true tokens are revealed in a share of as many slots, and a second pass learns the
others. The share falls during the run.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spec2seq.models.paper_drafter import EncodedSource, PaperDrafter
from spec2seq.training.clock import Clock
from spec2seq.training.loss import SmoothedCrossEntropy
from spec2seq.training.recipe import PaperDrafterRecipe


@dataclass(frozen=True)
class Blocks:
    """A block of slots in each row of a batch: what the decoder reads, `tokens[rows, length]`, and the places of the
    slots and their labels, both `[rows, size]`; -100 behind the end of a target."""

    tokens: Tensor
    places: Tensor
    labels: Tensor

    @classmethod
    def behind(cls, labels: Tensor, prefix: Tensor, size: int) -> "Blocks":
        """Blocks of `size` slots behind the first `prefix[rows]` tokens of `labels[rows, length]` (-100: padding)."""
        places = prefix[:, None] + torch.arange(size, device=labels.device)
        padded = F.pad(labels, (0, int(prefix.max()) + size - labels.shape[1]), value=-100)
        return cls(padded.clamp(min=0), places, padded.gather(1, places))

    @property
    def supervised(self) -> Tensor:
        """Which slots have a label, `[rows, size]`."""
        return self.labels != -100

    def states(self, drafter: PaperDrafter, source: EncodedSource, revealed: Tensor) -> Tensor:
        """What the drafter makes of the slots, `[rows, size, width]`; the true tokens stand in those `revealed`."""
        is_mask = torch.zeros_like(self.tokens, dtype=torch.bool).scatter(1, self.places, ~revealed)
        states = drafter.block_states(source, self.tokens, is_mask, self.places[:, -1] + 1)
        return states.gather(1, self.places[:, :, None].expand(-1, -1, states.shape[2]))


def row_draws(labels: Tensor, step: int, count: int) -> Tensor:
    """Uniform draws in [0, 1), `[rows, count]`, that depend on a row's tokens and the step, not on its batch."""
    rows = labels.cpu().numpy()
    draws = [np.random.default_rng([step, zlib.crc32(row[row != -100].tobytes())]).random(count) for row in rows]
    return torch.from_numpy(np.stack(draws)).to(labels.device)


def reveal(among: Tensor, count: Tensor, draws: Tensor) -> Tensor:
    """`count[rows]` of the places `among[rows, places]`, those with the least draws."""
    rank = draws.masked_fill(~among, torch.inf).argsort(1).argsort(1)
    return rank < count[:, None]


class GlancingLoss:
    """Smoothed cross entropy of the slots that were not revealed; see `Loss` in trainer.py.

    The original takes the mean of each micro-batch and gives all of them the same weight; here every slot of the
    accumulated batches has the same.
    """

    def __init__(self, recipe: PaperDrafterRecipe, clock: Clock):
        self.recipe, self.clock = recipe, clock

    def share(self) -> float:
        """The present ratio of revealed slots to wrong ones: from `start_p` down by `minus_p`, linearly."""
        recipe, clock = self.recipe, self.clock
        done = clock.progress() if recipe.total_up is None else clock.step / recipe.total_up
        return recipe.start_p - recipe.minus_p * min(1.0, done)

    def __call__(self, drafter: PaperDrafter, batch: dict[str, Tensor], smoothing: float, dtype: torch.dtype):
        labels, size = batch["labels"], drafter.config.block_size
        draws = row_draws(labels, self.clock.step, 1 + size)
        lengths = (labels != -100).sum(1)
        blocks = Blocks.behind(labels, lengths - 1 - (lengths * draws[:, 0]).long(), size)
        source = drafter.encode(batch["input_ids"], batch["attention_mask"].sum(1))
        wrong = first_pass(drafter, source, blocks)
        count = (wrong.sum(1).double() * self.share()).long()
        revealed = reveal(blocks.supervised, count, draws[:, 1:])
        learned = blocks.supervised & ~revealed
        states, wanted = blocks.states(drafter, source, revealed)[learned], blocks.labels[learned]
        smooth, plain = SmoothedCrossEntropy.apply(states, drafter.embedding, None, wanted, smoothing, dtype)
        return smooth, plain, len(wanted)


@torch.no_grad()
def first_pass(drafter: PaperDrafter, source: EncodedSource, blocks: Blocks) -> Tensor:
    """Which supervised slots the drafter gets wrong with all of them masked, `[rows, size]`.

    The random state is left as it was, so that the next pass drops out the same.
    """
    device, supervised = blocks.labels.device, blocks.supervised
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        states = blocks.states(drafter, source, torch.zeros_like(supervised))
        guessed = drafter.logits(states[supervised]).argmax(-1)
    # Autocast of older PyTorch keeps the copies of weights made here: the second pass would have no gradient.
    torch.clear_autocast_cache()
    return supervised.masked_scatter(supervised, guessed != blocks.labels[supervised])


def guesses(drafter: PaperDrafter, batch: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks behind every `block_size`-th token, the true prefix given; see `Guess` in draft_scores.py."""
    source = drafter.encode(batch["input_ids"], batch["attention_mask"].sum(1))
    labels, size = batch["labels"], drafter.config.block_size
    last = drafter.config.target_positions - size  # behind it nothing is drafted
    for start in range(0, min(labels.shape[1], last + 1), size):
        blocks = Blocks.behind(labels, torch.full_like(labels[:, 0], start), size)
        supervised = blocks.supervised
        states = blocks.states(drafter, source, torch.zeros_like(supervised))[supervised]
        yield drafter.logits(states).float(), blocks.labels[supervised], supervised.nonzero()[:, 1]
