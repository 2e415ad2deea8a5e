"""Engines that translate the same lines with the same weights, one file each, behind one small interface."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from spec2seq.errors import Spec2SeqError, UsageError


@dataclass(frozen=True)
class Workload:
    """What every engine is given: folders, source ids (end token included), the cap on new tokens, threads."""

    models: Path
    sources: list[list[int]]
    max_new_tokens: int
    threads: int | None = None
    dtype: str = "float32"

    @property
    def little(self) -> Path:
        """The folder of the little model. Raises Spec2SeqError if there is none."""
        folder = self.models / "little"
        if not (folder / "config.json").is_file():
            raise Spec2SeqError(f"{folder}: no little model here: config.json is missing")
        return folder

    @property
    def drafter(self) -> Path | None:
        """The folder of the block drafter, if there is one."""
        folder = self.models / "drafter"
        return folder if (folder / "config.json").is_file() else None

    def folders(self) -> dict[str, Path]:
        """Every model by its part, for the manifest."""
        found = {"verifier": self.models, "little": self.little}
        return found if self.drafter is None else found | {"drafter": self.drafter}


@dataclass(frozen=True)
class Run:
    """Every line translated once: new tokens (end token included), seconds of each line where they were translated
    one after the other, and the passes of the verifier, where they were counted."""

    sequences: list[list[int]]
    line_seconds: list[float]
    verifier_calls: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def new_tokens(self) -> int:
        return sum(map(len, self.sequences))


class Peer(Protocol):
    """One engine with the models of a workload loaded."""

    def run(self, method: str, parameters: dict[str, Any], count: bool = False) -> Run:
        """Translate every line with a method, alone. `count` may cost time: it counts passes of the verifier."""
        ...


def load_peer(engine: str, workload: Workload) -> Peer:
    """Load an engine by name. Raises Spec2SeqError if its package is not installed."""
    if engine == "spec2seq":
        from spec2seq.evaluation.peers.ours import Ours as Chosen
    elif engine == "hf":
        from spec2seq.evaluation.peers.hf import Transformers as Chosen
    elif engine == "ctranslate2":
        from spec2seq.evaluation.peers.ct2 import CTranslate2 as Chosen
    else:
        raise UsageError(f"engine is {engine!r}; allowed: spec2seq, hf, ctranslate2")
    return Chosen(workload)
