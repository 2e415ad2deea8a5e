"""Block drafters propose a whole block in one pass. `BlockDrafter.from_pretrained` loads any kind of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spec2seq.config import check_choice
from spec2seq.decoding.acceptance import Draft
from spec2seq.decoding.cached_blocks import CachedBlockDrafter
from spec2seq.decoding.drafters import Drafter
from spec2seq.decoding.rows import Rows
from spec2seq.decoding.sampling import Sampling
from spec2seq.errors import UsageError
from spec2seq.models import drafter_folder
from spec2seq.models import executor as executors
from spec2seq.models.architecture import Architecture
from spec2seq.models.cache import Cache
from spec2seq.models.encoder_decoder import Decoded, Encoded, EncoderDecoder
from spec2seq.models.loading import torch_device
from spec2seq.models.paper_drafter import EncodedSource, PaperDrafter
from spec2seq.options import DTYPES


class BlockDrafter:
    """A `Drafter` that was trained to propose `block_size` tokens at once."""

    @staticmethod
    def from_pretrained(
        folder: str | Path, dtype: str = "float32", device: str = "cpu", executor: str = "auto"
    ) -> Drafter:
        """Load the folder of a trained block drafter, for `Seq2Seq.from_pretrained`'s dtypes and executors; the paper's
        drafter stays in float32 where int8 is asked. Raises UsageError for a dtype, a device or an executor that there
        is not, Spec2SeqError if the folder holds no drafter."""
        check_choice("dtype", dtype, DTYPES)
        where = torch_device(device)
        executors.check(dtype, executor)
        kind = drafter_folder.read_config(folder)["drafter_type"]
        check_choice(f"{folder}: drafter_type", kind, BLOCK_DRAFTERS)
        return BLOCK_DRAFTERS[kind](folder, dtype, where, executor)


@dataclass(frozen=True, eq=False)
class PaperBlockDrafter:
    """The drafter of SpecDec (Xia et al. 2023), for any verifier with its vocabulary. Blocks of another size than it
    was trained for work, too."""

    model: PaperDrafter

    has_confidence = False
    hidden_layers = ()
    longest = None

    @classmethod
    def load(cls, folder: str | Path, dtype: str, device: torch.device, executor: str) -> "PaperBlockDrafter":
        return cls(PaperDrafter.from_pretrained(folder).to(device, executors.WEIGHTS[dtype]))

    @property
    def block_size(self) -> int:
        return self.model.config.block_size

    @property
    def longest_source(self) -> int:
        return self.model.config.source_positions

    def session(self, rows: Rows, verifier: EncoderDecoder) -> "PaperDrafterSession":
        """Raises UsageError for a verifier that hears, or unless the drafter has its vocabulary and device."""
        if verifier.architecture.sound is not None:
            raise UsageError("the paper's drafter reads texts, and the verifier hears")
        check_vocabulary(self.model.config.architecture, verifier.architecture)
        if verifier.device != self.model.device:
            raise UsageError(
                f"the verifier is on {verifier.device} and the drafter on {self.model.device}; load both on one"
            )
        return PaperDrafterSession(self.model, rows)


class PaperDrafterSession:
    """Only the sources are kept: attention over the prefix changes with every block."""

    def __init__(self, model: PaperDrafter, rows: Rows):
        self.model, self.rows = model, rows
        self.cache = Cache(model.config.architecture.decoder, rows.slots, model.dtype, model.device)

    def admit(self, first_slot: int, encoded: Encoded) -> None:
        source = self.model.encode(encoded.tokens, encoded.lengths)
        self.cache.put_source(first_slot, source.key_value, source.lengths)

    def draft(self, k: int, room: Tensor, confidence: float | None, sampling: Sampling | None) -> Draft:
        rows = self.rows
        n, length = rows.count, rows.source_horizon
        prefix, longest = rows.lengths[:n] - 1, rows.horizon - 1  # the decoder start token is not part of it
        source = EncodedSource(
            rows.source_tokens[:n, :length], rows.source_lengths[:n], self.cache.source[:, :, :n, :, :length]
        )
        tokens = self.model.draft(source, rows.tokens[:n, 1:], prefix, longest, k)
        left = self.model.config.target_positions - prefix
        return Draft(tokens, torch.minimum(room, left).clamp(min=0, max=k), fed=k)

    def commit(self, counts: list[int], decoded: Decoded) -> None:
        pass

    def move(self, source: int, target: int) -> None:
        self.cache.move(source, target, *self.rows.places(target))


def check_vocabulary(drafter: Architecture, verifier: Architecture) -> None:
    """Raises UsageError naming the first difference between the vocabularies."""
    names = ("vocabulary", "entries of the vocabulary"), ("source_vocabulary", "entries of a vocabulary for the source")
    for name, what in (*names, ("eos_token_id",) * 2, ("pad_token_id",) * 2):
        ours, theirs = getattr(verifier, name), getattr(drafter, name)
        if ours != theirs:
            raise UsageError(
                f"verifier and drafter have different vocabularies: {what}: {ours} and {theirs}; they must be equal"
            )


BLOCK_DRAFTERS: dict[str, Callable[[str | Path, str, torch.device, str], Drafter]] = {
    "cached": CachedBlockDrafter.load,
    "paper": PaperBlockDrafter.load,
}
