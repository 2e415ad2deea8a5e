"""BiLD as its authors' program does it (kssteven418/BigLittleDecoder, commit ad37f56), token for token, one source at
a time: to check published outputs. Use `BiLD` for anything else; docs/bild.md says what differs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spec2seq.config import check_range, check_whole
from spec2seq.decoding.drafters import LittleModel
from spec2seq.decoding.processors import Prefix, Processor, processed
from spec2seq.decoding.scheduler import Completion
from spec2seq.decoding.stats import Counts
from spec2seq.errors import UsageError
from spec2seq.models.encoder_decoder import EncoderDecoder


@dataclass(frozen=True)
class OfficialBiLD:
    """The original's decoder with its defects. As there, None and 0 mean its defaults, 0.6 and 5.0; thresholds out of
    range are refused all the same."""

    drafter: LittleModel
    fallback_threshold: float | None = None
    rollback_threshold: float | None = None
    max_draft_tokens: int = 10

    lossless, sampling = False, None

    def __post_init__(self):
        if not isinstance(self.drafter, LittleModel):
            raise UsageError(f"{type(self.drafter).__name__} is no little model; the original takes nothing else")
        check_range("fallback_threshold", self.fallback_threshold, low=0.0, high=1.0)
        check_range("rollback_threshold", self.rollback_threshold, low=0.0)
        check_whole("max_draft_tokens", self.max_draft_tokens, low=1)

    def completed(self, settings: Mapping[str, Any]) -> "OfficialBiLD":
        """Nothing is left to a model's generation config."""
        return self

    @torch.inference_mode()
    def decode(
        self, verifier: EncoderDecoder, source: list[int], max_new_tokens: int, processors: list[Processor],
        eos_token_ids: tuple[int, ...] = (),
    ) -> Completion:  # fmt: skip
        """One source (ids, end token included). The output may hold end tokens before its end. `eos_token_ids` end it;
        none: the verifier's own end token."""
        return _Decoding(self, verifier, source, max_new_tokens, processors, eos_token_ids).run()


class _Side:
    """One model with its cache; `cached` tokens of the output are in it."""

    def __init__(self, model: EncoderDecoder, source: list[int]):
        self.model, self.cached = model, 0
        self.cache, self.horizon = model.new_cache(1), len(source)
        tokens = torch.tensor([source], device=model.device)
        model.admit(self.cache, 0, model.encode(tokens, torch.tensor([len(source)], device=model.device)))

    def logits(self, ids: list[int]) -> Tensor:
        """`[fed, vocabulary]` after each token that the cache has not; they are not counted as cached yet."""
        device = self.model.device
        fed = torch.tensor([ids[self.cached :]], device=device)
        starts = torch.tensor([self.cached], device=device)
        return self.model.decode_block(
            self.cache, fed, starts, len(ids), uniform=True, source_horizon=self.horizon
        ).logits[0]


class _Decoding:
    def __init__(self, method: OfficialBiLD, verifier, source, max_new_tokens, processors, ends):
        a = verifier.architecture
        self.fallback = method.fallback_threshold or 0.6
        self.rollback = method.rollback_threshold or 5.0
        self.cap, self.ends, self.processors = method.max_draft_tokens, ends or (a.eos_token_id,), processors
        little = method.drafter.scoring(()).model  # the original knows no shortlist
        self.large, self.small = _Side(verifier, source), _Side(little, source)
        self.common = min(a.vocabulary, little.architecture.vocabulary)
        self.ids, self.writers = [a.decoder_start_token_id], ""
        self.limit = max_new_tokens + 1
        self.counts = Counts()

    def run(self) -> Completion:
        """The original's loop: the large model first, and again after a fallback, the cap, or a rollback."""
        side, left = self.large, 1
        while True:
            kept = self._small_step() if side is self.small else self._large_step()
            if kept and (self.ids[-1] in self.ends or len(self.ids) >= self.limit):
                return self._completion()
            if side is self.small and not kept:
                side, left = self.large, 1
            elif kept:
                left -= 1
                if left == 0:
                    self.counts.handovers += side is self.small
                    side, left = (self.large, 1) if side is self.small else (self.small, self.cap)

    def _small_step(self) -> bool:
        """False: a fallback. Its token is dropped, and so are the keys and values of the whole pass."""
        logits = self.small.logits(self.ids)
        self.counts.drafter_calls += 1
        self.counts.drafter_tokens += len(self.ids) - self.small.cached
        top, token = self._last(logits[:, : self.common]).softmax(-1).max(-1)
        if top < self.fallback:
            self.counts.fallbacks += 1
            return False
        self.small.cached = len(self.ids)
        self._write(int(token), "d")
        self.counts.drafted += 1
        return True

    def _large_step(self) -> bool:
        """False: a rollback. Nothing of the pass is kept, and neither end nor length is looked at."""
        logits, fed = self.large.logits(self.ids), self.ids[self.large.cached :]
        self.counts.verifier_calls += 1
        self.counts.verifier_tokens += len(fed)
        place = self._violation(logits, fed)
        if place is None:
            self.large.cached = len(self.ids)
            self._write(int(self._last(logits).argmax()), "v")
            return True
        keep = self.large.cached + place
        del self.ids[keep:]
        self.writers = self.writers[: keep - 1]
        self._write(int(logits[place - 1].argmax()), "v")
        for side in (self.large, self.small):
            side.cached = min(side.cached, len(self.ids) - 1)
        self.counts.rollbacks += 1
        return False

    def _violation(self, logits: Tensor, fed: list[int]) -> int | None:
        """The place in `fed` to roll back to: the first beyond the threshold, unless it is the likeliest there;
        what comes behind such a one is not looked at."""
        if len(fed) == 1:
            return None
        drafted = torch.tensor(fed[1:], device=logits.device)
        nats = -logits[:-1].float().log_softmax(-1).gather(1, drafted[:, None])[:, 0]
        beyond = (nats > self.rollback).nonzero()
        if not len(beyond):
            return None
        place = int(beyond[0, 0])
        return place + 1 if int(logits[place].argmax()) != fed[place + 1] else None

    def _last(self, logits: Tensor) -> Tensor:
        """The last row, processed, in float32: what tokens and fallbacks are decided by."""
        row = logits[None, -1:].float()
        tokens = torch.tensor([self.ids], device=row.device)
        length, limit, given = (tokens.new_tensor([count]) for count in (len(self.ids), self.limit, 1))
        prefix = Prefix(tokens, length, limit, given)
        return processed(row, prefix, self.processors)[0, 0]

    def _write(self, token: int, writer: str) -> None:
        self.ids.append(token)
        self.writers += writer

    def _completion(self) -> Completion:
        counts = self.counts
        counts.new_tokens, counts.accepted = len(self.writers), self.writers.count("d")
        counts.discarded = counts.drafted - counts.accepted
        counts.unverified = self.writers[self.large.cached - 1 :].count("d") if self.writers[-1] == "d" else 0
        return Completion(0, self.ids[1:], counts, self.writers)
