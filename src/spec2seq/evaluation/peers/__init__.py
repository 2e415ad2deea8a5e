"""Engines that translate the same lines with the same weights, one file each, behind one small interface."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from spec2seq.errors import Spec2SeqError, UsageError

ENGINES = ("spec2seq", "hf", "ctranslate2")


@dataclass(frozen=True)
class Workload:
    """What every engine is given: folders, source ids (end token included), the cap on new tokens, threads.

    `beside`: the folders of "little" and "drafter" where they are not in that of the verifier; `settings`: the
    verifier's generation config, for an engine that does not read it.
    """

    models: Path
    sources: list[list[int]]
    max_new_tokens: int
    threads: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    beside: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def little(self) -> Path:
        """The folder of the little model. Raises Spec2SeqError if there is none."""
        folder = self._folder("little")
        if folder is None:
            raise Spec2SeqError("little/config.json: no little model lies beside the verifier")
        return folder

    @property
    def drafter(self) -> Path | None:
        """The folder of the block drafter, if there is one."""
        return self._folder("drafter")

    def _folder(self, part: str) -> Path | None:
        folder = Path(self.beside.get(part, self.models / part))
        return folder if (folder / "config.json").is_file() else None

    def folders(self) -> dict[str, Path]:
        """Every model by its part, for the manifest."""
        found = {"verifier": self.models, "little": self._folder("little"), "drafter": self.drafter}
        return {part: folder for part, folder in found.items() if folder is not None}


@dataclass(frozen=True)
class Job:
    """Lines of the workload (places in its sources, in this order; None: all) to translate with a method.

    `num_beams` and the like are among `parameters`, by the names that the engine's own users write.
    """

    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    lines: list[int] | None = None
    batch_size: int = 1
    max_new_tokens: int | None = None  # None: the workload's

    def sources(self, workload: Workload) -> list[list[int]]:
        return workload.sources if self.lines is None else [workload.sources[line] for line in self.lines]

    def cap(self, workload: Workload) -> int:
        return self.max_new_tokens or workload.max_new_tokens


@dataclass(frozen=True)
class Run:
    """Every line translated once: new tokens (end token included), the seconds of each line at batch size 1 (none in
    batches), and the passes of the verifier that lines took part in, where the engine can say so."""

    sequences: list[list[int]]
    line_seconds: list[float]
    verifier_calls: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def new_tokens(self) -> int:
        return sum(map(len, self.sequences))


class Peer(Protocol):
    """One engine with the models of a workload loaded."""

    def run(self, job: Job, count: bool = False) -> Run:
        """Translate the job's lines. `count` may cost time: it counts passes of the verifier. Raises UsageError for a
        method that the engine does not have, and whatever the engine itself raises."""
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
        raise UsageError(f"engine is {engine!r}; allowed: {', '.join(ENGINES)}")
    return Chosen(workload)


def batches(sources: list[list[int]], batch_size: int) -> list[list[int]]:
    """Places of the sources in batches, the longest first, as all engines here sort them; alone in their order."""
    order = list(range(len(sources)))
    if batch_size > 1:
        order.sort(key=lambda place: -len(sources[place]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
