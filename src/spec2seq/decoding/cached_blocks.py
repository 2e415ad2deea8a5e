"""The cached block drafter at work: what the verifier committed goes in, a block of guesses comes out."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spec2seq.decoding.acceptance import Draft
from spec2seq.decoding.rows import Rows
from spec2seq.decoding.sampling import DRAFT, Sampling, draw, uniform
from spec2seq.errors import UsageError
from spec2seq.models import executor as executors
from spec2seq.models.cached_drafter import CachedDrafter
from spec2seq.models.encoder_decoder import Decoded, Encoded, EncoderDecoder
from spec2seq.models.fingerprint import fingerprint
from spec2seq.models.native_drafter import NativeChooser, NativeDrafter

# For each drafter and verifier: checking them and preparing the head take milliseconds.
_prepared: WeakKeyDictionary[Any, WeakKeyDictionary] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class CachedBlockDrafter:
    """Drafts with a `CachedDrafter`, for the one verifier that it was trained on."""

    model: CachedDrafter

    has_confidence = True

    @classmethod
    def load(cls, folder: str | Path, dtype: str, device: torch.device, executor: str) -> "CachedBlockDrafter":
        model = CachedDrafter.from_pretrained(folder).to(device, executors.WEIGHTS[dtype])
        executors.prepare(model, dtype, executor)
        return cls(model)

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        return self.model.shape.hidden_layers

    @property
    def block_size(self) -> int:
        """What it was trained for; shorter drafts work, longer ones do not."""
        return self.model.shape.block_size

    longest = block_size
    longest_source = None

    def session(self, rows: Rows, verifier: EncoderDecoder) -> "CachedSession":
        """Raises UsageError for a verifier of another shape; warns once if it has other weights."""
        known = _prepared.setdefault(self, WeakKeyDictionary())
        if verifier not in known:
            self._check(verifier)
            head = self.model.guess_head(verifier)
            native = None
            if self.model.native is not None:
                native = NativeDrafter(self.model, NativeChooser(self.model, verifier, head))
            known[verifier] = head, native
        return CachedSession(self.model, rows, verifier, *known[verifier])

    def _check(self, verifier: EncoderDecoder) -> None:
        mine, theirs = self.model.architecture, verifier.architecture
        for name in ("vocabulary", "width", "eos_token_id", "decoder_start_token_id"):
            if getattr(mine, name) != getattr(theirs, name):
                raise UsageError(
                    f"the drafter is made for a verifier with {name} {getattr(mine, name)}; "
                    f"this one has {getattr(theirs, name)}"
                )
        if mine.decoder != theirs.decoder:
            raise UsageError(f"the drafter is made for the decoder {mine.decoder}; this one is {theirs.decoder}")
        trained_for = self.model.verifier
        if trained_for is not None and trained_for != fingerprint(verifier):
            warnings.warn("the drafter was trained for a verifier with other weights: slower, not wrong", stacklevel=3)
        for name in ("dtype", "device"):
            if getattr(verifier, name) != getattr(self.model, name):
                values = f"{getattr(verifier, name)} and {getattr(self.model, name)}"
                raise UsageError(f"verifier and drafter differ: {name} is {values}; load both alike")


class CachedSession:
    """`fed[slot]` tokens of a row are in the cache; `pending[slot]` has the verifier's states that chose the rest."""

    def __init__(
        self, model: CachedDrafter, rows: Rows, verifier: EncoderDecoder, head: nn.Module, native: NativeDrafter | None
    ):
        self.model, self.rows, self.verifier = model, rows, verifier
        self.cache, self.head, self.native = model.new_cache(rows.slots), head, native
        self.fed = [0] * rows.slots
        self.unread: dict[int, tuple[Encoded, int]] = {}  # by slot: where its source is among others
        features = len(model.shape.hidden_layers) * model.architecture.width
        self.pending = torch.zeros(0, 1, features, dtype=verifier.dtype, device=verifier.device)

    def admit(self, first_slot: int, encoded: Encoded) -> None:
        kept = {slot: where for slot, where in self.unread.items() if slot < first_slot}  # others have left
        self.unread = kept | {first_slot + row: (encoded, row) for row in range(self.rows.count - first_slot)}
        _, width, features = self.pending.shape
        width = max(width, *self.rows.host_given[first_slot : self.rows.count])
        fresh = self.pending.new_zeros(self.rows.count - first_slot, width, features)
        self.pending = torch.cat([at_least(self.pending[:first_slot], width), fresh])
        for slot in range(first_slot, self.rows.count):
            self.fed[slot] = 0

    def prompted(self, first_slot: int, decoded: Decoded) -> None:
        self.pending = with_prompts(self.pending, first_slot, self.features(decoded))

    def features(self, decoded: Decoded) -> Tensor:
        """What the drafter reads of a pass of the verifier: `[rows, length, features]`."""
        layers = self.model.shape.hidden_layers
        return torch.cat([decoded.hidden[layer] for layer in layers], 2) if layers else decoded.states[:, :, :0]

    def read_sources(self) -> None:
        """To be called before a draft, which rows may never get."""
        while self.unread:
            first, (encoded, row) = self.unread.popitem()
            end = first + 1
            while self.unread.get(first - 1, (None, 0))[0] is encoded and self.unread[first - 1][1] == row - 1:
                first, row = first - 1, row - 1
                del self.unread[first]
            end = min(end, self.rows.count)  # others have left
            if first < end:
                self.model.admit(self.cache, first, encoded.part(slice(row, row + end - first)))

    def draft(self, k: int, room: Tensor, confidence: float | None, sampling: Sampling | None) -> Draft:
        self.read_sources()
        rows, n = self.rows, self.rows.count
        k = min(k, self.model.shape.block_size)
        fed, host = self.fed[:n], rows.host_lengths[:n]
        new = max(length - cached for length, cached in zip(host, fed, strict=True))
        same = rows.uniform and min(fed) == max(fed)
        if same:
            starts = rows.lengths[:n] - new
            tokens = rows.tokens[:n, fed[0] : host[0]]
        else:
            tokens, starts = rows.tokens_from(fed, new)
        states = self.model.guess(
            self.verifier, self.cache, tokens, self.pending[:n, :new], starts, rows.lengths[:n] - starts, k,
            max(fed) + new + k - 1, rows.source_horizon, same,
        )  # fmt: skip
        self.fed[:n] = host
        last = rows.tokens[:n].gather(1, rows.lengths[:n, None] - 1)[:, 0]
        drawn: list[Tensor] = []

        def pick(logits: Tensor, step: int) -> Tensor:
            if sampling is None:
                return logits.argmax(-1)
            drawn.append(sampling.probabilities(logits))
            return draw(drawn[-1], uniform(rows.seeds[:n], rows.lengths[:n] + step, DRAFT))

        if self.native is not None and sampling is None:
            drafted, logits = self.native.chooser(states, last)
        else:
            drafted, logits = self.model.choose(self.verifier, self.head, states, last, pick)
        length = torch.minimum(room, through(rows.ends(drafted)))
        unsure = None
        if confidence is not None:
            sure = (logits.float().softmax(-1).amax(-1) >= confidence).long().cumprod(1).sum(1)
            unsure = sure < length
            length = torch.minimum(length, sure)
        return Draft(drafted, length, unsure, self._probabilities(drawn), 1, new + k - 1)

    def _probabilities(self, drawn: list[Tensor]) -> Tensor | None:
        """What each slot was drawn from, over the whole vocabulary, `[rows, k, vocabulary]`."""
        if not drawn:
            return None
        q = torch.stack(drawn, 1)
        if not self.model.shape.shortlist:
            return q
        everything = q.new_zeros(*q.shape[:2], self.model.architecture.vocabulary)
        return everything.index_copy_(2, self.model.shortlist, q)

    def commit(self, counts: list[int], decoded: Decoded) -> None:
        n, states = len(counts), self.features(decoded)
        waiting = [self.rows.host_lengths[slot] - counts[slot] - self.fed[slot] for slot in range(n)]
        if any(waiting):  # tokens came without a draft
            places = torch.tensor(waiting, device=states.device)[:, None]
            places = places + torch.arange(states.shape[1], device=states.device)
            grown = states.new_zeros(n, max(waiting) + states.shape[1], states.shape[2])
            grown[:, : max(waiting)] = self.pending[:n, : max(waiting)]
            states = grown.scatter_(1, places[:, :, None].expand(-1, -1, states.shape[2]), states)
        self.pending = states

    def move(self, source: int, target: int) -> None:
        self.unread.pop(target, None)
        if source in self.unread:
            self.unread[target] = self.unread.pop(source)
        else:
            self.cache.move(source, target, *self.rows.places(target))
        self.pending[target] = self.pending[source]
        self.fed[target] = self.fed[source]


def with_prompts(pending: Tensor, first: int, states: Tensor) -> Tensor:
    """States `[slots, places, features]` that chose the tokens at each place, with those `[rows, length, features]` of
    prompts in the slots from `first` on; no state chose the decoder start."""
    rows, length, _ = states.shape
    pending = at_least(pending, length + 1)
    pending[first : first + rows, 1 : length + 1] = states
    return pending


def at_least(states: Tensor, places: int) -> Tensor:
    """States `[slots, places, features]` with room for so many places: the same tensor where there is."""
    missing = places - states.shape[1]
    return states if missing <= 0 else nn.functional.pad(states, (0, 0, 0, missing))


def through(ends: Tensor) -> Tensor:
    """How many places up to and with the first of `ends[rows, width]`: `[rows]`."""
    before = ends.long().cumsum(1) - ends.long()
    return (before == 0).sum(1)
