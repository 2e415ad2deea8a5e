"""What a drafter is worth on held-out lines, measured the same for every kind of drafter."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spec2seq import FixedLength, Speculative
from spec2seq.training.data import Pair
from spec2seq.training.inputs import Inputs

# A batch of `Inputs.collator` → logits `[places, guessable]`, labels among them (-100: never guessed) and place in the
# block, both `[places]`, of the drafted places that have a label, in any number of parts.
Guess = Callable[[dict[str, Tensor]], Iterable[tuple[Tensor, Tensor, Tensor]]]


@dataclass(frozen=True)
class DraftScores:
    """What a drafter is worth on `lines` sources: on drafted places alone, NLL in nats of the tokens it can guess, and
    accuracy; and tokens per verifier call of exact decoding with whole blocks."""

    lines: int
    nll: float
    accuracy: tuple[float, ...]  # [place in the block], the true tokens before it given
    tokens_per_verifier_call: float

    @property
    def value(self) -> float:
        """What the choice of the best weights compares."""
        return self.tokens_per_verifier_call

    def __str__(self) -> str:
        places = " ".join(f"{share:.3f}" for share in self.accuracy)
        return f"tokens per verifier call {self.tokens_per_verifier_call:.3f} nll {self.nll:.4f} accuracy {places}"


@torch.no_grad()
def score_drafter(
    inputs: Inputs, drafter: Any, guess: Guess, pairs: list[Pair], batch_size: int, max_new_tokens: int
) -> DraftScores:
    """Score `drafter`, whose logits `guess` gives, on what the verifier has answered (`Pair.tokens`)."""
    device, size = inputs.verifier.model.device, drafter.block_size
    rows, collate = inputs.rows(pairs), inputs.collator()
    right, seen = torch.zeros(2, size, dtype=torch.long)
    nll, guessable = 0.0, 0
    for start in range(0, len(rows), batch_size):
        part = [rows[index] for index in range(start, min(start + batch_size, len(rows)))]
        batch = {name: t.to(device) for name, t in collate(part).items()}
        for logits, labels, place in guess(batch):
            nll += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            guessable += int((labels != -100).sum())
            right += place[logits.argmax(-1) == labels].bincount(minlength=size).cpu()
            seen += place.bincount(minlength=size).cpu()
    blocks, new_tokens, calls = Speculative(drafter, FixedLength(size)), 0, 0
    for model, sources, prompts in inputs.asked(pairs):
        limits = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
        for row in model.stream(sources, blocks, prompts=prompts, **limits):
            new_tokens, calls = new_tokens + row.counts.new_tokens, calls + row.counts.verifier_calls
    accuracy = tuple((right / seen.clamp(min=1)).tolist())
    return DraftScores(len(rows), nll / max(1, guessable), accuracy, new_tokens / max(1, calls))
