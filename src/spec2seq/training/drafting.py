"""Training of the cached block drafter on what its verifier wrote: several blocks of every sentence at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spec2seq.models.cached_drafter import CachedDrafter
from spec2seq.models.encoder_decoder import Encoded, EncoderDecoder
from spec2seq.training.loss import SmoothedCrossEntropy


@dataclass(frozen=True)
class Guesses:
    """The drafted places of a batch that have a label: states `[places, width]`, labels, the token before each, and
    which place of its block it is, all `[places]`."""

    states: Tensor
    labels: Tensor
    previous: Tensor
    place: Tensor


def guesses(drafter: CachedDrafter, verifier: EncoderDecoder, batch: dict[str, Tensor], anchors: Tensor) -> Guesses:
    """The drafter's states on a batch of `Collator`, blocks standing behind the places `anchors[rows, blocks]`."""
    inputs, labels = batch["decoder_input_ids"], batch["labels"]
    with torch.no_grad():
        encoded, features = read(verifier, batch, drafter.shape.hidden_layers)
    at_tokens, at_slots = drafter.block_states(verifier, encoded, inputs, features, anchors)
    rows, blocks, size, width = at_slots.shape
    slots = torch.arange(1, size + 1, device=inputs.device)
    where = (anchors[:, :, None] + slots).view(rows, -1)  # the label of slot j behind place t is that of place t + j
    inside = where < labels.shape[1]
    where = where.clamp(max=labels.shape[1] - 1)
    states = torch.cat([at_tokens, at_slots.view(rows, -1, width)], 1)
    wanted = torch.cat([labels, labels.gather(1, where).where(inside, -100)], 1)
    previous = torch.cat([inputs, inputs.gather(1, where)], 1)
    place = torch.cat([torch.zeros_like(inputs[0]), slots.repeat(blocks)]).expand(rows, -1)
    kept = wanted != -100
    return Guesses(states[kept], wanted[kept], previous[kept], place[kept])


def read(verifier: EncoderDecoder, batch: dict[str, Tensor], layers: tuple[int, ...]) -> tuple[Encoded, Tensor]:
    """Encode a batch and let the verifier read its targets: the encoding, and for each place the states that chose
    the token there, `[rows, length, layers * width]`."""
    inputs = batch["decoder_input_ids"]
    rows, length = inputs.shape
    encoded = _encoded(verifier, batch)
    if not layers:
        return encoded, encoded.states.new_zeros(rows, length, 0)
    cache = verifier.new_cache(rows)
    verifier.admit(cache, 0, encoded)
    decoded = verifier.decode_block(
        cache, inputs, torch.zeros_like(inputs[:, 0]), length, uniform=True,
        logit_positions=torch.zeros_like(inputs[:, :1]), hidden_layers=layers,
    )  # fmt: skip
    states = torch.cat([decoded.hidden[layer] for layer in layers], 2)
    return encoded, torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)


def _encoded(verifier: EncoderDecoder, batch: dict[str, Tensor]) -> Encoded:
    """The sources of a batch; those of `HeardCollator` are encoded."""
    states = batch.get("encoded")
    if states is None:
        return verifier.encode(batch["input_ids"], batch["attention_mask"].sum(1))
    lengths = torch.full((len(states),), states.shape[1], device=states.device)
    return Encoded(states, lengths, states.to(verifier.dtype))


def conditioned(drafter: CachedDrafter, verifier: EncoderDecoder, found: Guesses) -> Tensor:
    """The states with what the true token before each place tells, `[places, width]`."""
    if drafter.follow is None:
        return found.states
    embedded = torch.nn.functional.embedding(found.previous, verifier.target_embedding)
    return found.states + drafter.follow(drafter.follow.state(found.states), embedded.to(found.states.dtype))


class DrafterLoss:
    """Smoothed cross entropy of a batch's guesses, a block behind every `stride`-th token of each row, among the tokens
    that are guessed at all; places with another token teach nothing.

    Where the blocks stand depends on the row's tokens and `step()`, not on the batch that a row is in.
    """

    def __init__(self, verifier: EncoderDecoder, stride: int, step: Any):
        self.verifier, self.stride, self.step = verifier, stride, step

    def __call__(self, drafter: CachedDrafter, batch: dict[str, Tensor], smoothing: float, dtype: torch.dtype):
        inputs = batch["decoder_input_ids"]
        offset = (batch["labels"].clamp(min=0).sum(1) + self.step()) % self.stride
        anchors = offset[:, None] + torch.arange(0, inputs.shape[1], self.stride, device=inputs.device)
        found = guesses(drafter, self.verifier, batch, anchors)
        head = drafter.guess_head(self.verifier)
        places = drafter.places(found.labels)
        kept = places != -100
        states = conditioned(drafter, self.verifier, found)[kept]
        smooth, plain = SmoothedCrossEntropy.apply(states, head.weight, head.bias, places[kept], smoothing, dtype)
        return smooth, plain, len(states)


def block_guesses(
    drafter: CachedDrafter, verifier: EncoderDecoder, batch: dict[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks behind every `block_size`-th token, the true tokens before them given; see `Guess` in draft_scores.py."""
    labels = batch["labels"]
    anchors = torch.arange(0, labels.shape[1], drafter.shape.block_size, device=labels.device)
    found = guesses(drafter, verifier, batch, anchors.expand(len(labels), -1))
    states = conditioned(drafter, verifier, found)
    head = drafter.guess_head(verifier).to(states.dtype)
    yield head(states).float(), drafter.places(found.labels), found.place
