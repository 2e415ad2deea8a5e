"""The shape of a cached block drafter, and the configuration that is saved with its weights."""

from dataclasses import dataclass

from spec2seq.config import check_range
from spec2seq.models.architecture import Architecture


@dataclass(frozen=True)
class CachedDrafterShape:
    """`hidden_layers` are the verifier's decoder layers whose states are read (0: the embedding). `follow_width` is the
    inner width of the network that reads the token before a slot; 0: slots are guessed independently. Only the
    `shortlist` most frequent tokens are ever guessed, which makes the head cheaper (as in Zhao et al. 2025, FR-Spec);
    0: all."""

    block_size: int = 6
    layers: int = 1
    feed_forward: int = 1024
    hidden_layers: tuple[int, ...] = ()
    follow_width: int = 256
    shortlist: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("block_size", 1, 64), ("layers", 1, 12), ("feed_forward", 8, 32768), ("follow_width", 0, 32768),
            ("shortlist", 0, None),
        ):  # fmt: skip
            check_range(name, getattr(self, name), low, high)


@dataclass(frozen=True)
class CachedDrafterConfig:
    """`architecture` is the verifier's: widths, vocabulary and the kind of layers are shared. `verifier` is its
    fingerprint; None if not known."""

    architecture: Architecture
    shape: CachedDrafterShape = CachedDrafterShape()
    verifier: str | None = None
