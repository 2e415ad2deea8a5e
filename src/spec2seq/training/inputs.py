"""What a verifier is given, texts or sounds: to learn from, to be scored on, and to decode."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from spec2seq.api import Seq2Seq
from spec2seq.training.batches import Collator, TokenizedPairs
from spec2seq.training.cache import tokenized, written
from spec2seq.training.data import Pair, read_pairs
from spec2seq.training.recipe import DataConfig
from spec2seq.training.sounds import (
    HeardCollator,
    HeardRows,
    check,
    check_told,
    encoded,
    learnable,
    spectrograms,
    timed_apart,
)


class Asked(NamedTuple):
    """Sources for a model, which may be read once, and what each output is told to begin with."""

    model: Seq2Seq
    sources: Iterable[Any]
    prompts: list[Sequence[int]]


class Inputs(Protocol):
    """Of one verifier. What is made of sources once is kept in a folder."""

    verifier: Seq2Seq

    def training_rows(self, path: Path, data: DataConfig, tokenizer: Any) -> Any:
        """The rows of a file that a recipe wants."""

    def rows(self, pairs: Sequence[Pair]) -> Sequence[Any]:
        """Items for the collator."""

    def collator(self) -> Collator: ...

    def asked(self, pairs: Sequence[Pair]) -> list[Asked]:
        """The same to be decoded; those that the model must be asked differently apart."""


def inputs_of(verifier: Seq2Seq, folder: Path, report: Callable[[str], None] | None = None) -> Inputs:
    """Those of a model that reads or hears. `report` takes lines of progress."""
    kind = Texts if verifier.model.architecture.sound is None else Sounds
    return kind(verifier, folder, report or (lambda line: None))


class _Inputs:
    kind: type[Collator]

    def __init__(self, verifier: Seq2Seq, folder: Path, report: Callable[[str], None]):
        self.verifier, self.folder, self.report = verifier, folder, report

    def collator(self) -> Collator:
        a = self.verifier.model.architecture
        return self.kind(a.pad_token_id, a.decoder_start_token_id)


class Texts(_Inputs):
    """See `Inputs`."""

    kind = Collator

    def training_rows(self, path: Path, data: DataConfig, tokenizer: Any) -> TokenizedPairs:
        check_told(self.verifier, data)
        return tokenized(path, data, tokenizer, self.folder, self.verifier.model.architecture.vocabulary)

    def rows(self, pairs: Sequence[Pair]) -> list[tuple[Any, tuple[int, ...]]]:
        targets = written(pairs, self.verifier.model.architecture.vocabulary)
        return list(zip(self._sources(pairs), targets, strict=True))

    def asked(self, pairs: Sequence[Pair]) -> list[Asked]:
        return [Asked(self.verifier, self._sources(pairs), [()] * len(pairs))]

    def _sources(self, pairs: Sequence[Pair]) -> list[Any]:
        return [self.verifier.source_ids(pair.source, f"line {n}", True) for n, pair in enumerate(pairs, 1)]


class Sounds(_Inputs):
    """See `Inputs`."""

    kind = HeardCollator

    def training_rows(self, path: Path, data: DataConfig, tokenizer: Any) -> HeardRows:
        check_told(self.verifier, data)
        pairs = learnable(self.verifier, list(read_pairs(path, data)), data, path)
        return self.rows(pairs)

    def rows(self, pairs: Sequence[Pair]) -> HeardRows:
        check(self.verifier, pairs)
        return HeardRows(encoded(self.verifier, pairs, self.folder, self.report), pairs)

    def asked(self, pairs: Sequence[Pair]) -> list[Asked]:
        check(self.verifier, pairs)
        return [
            Asked(model, spectrograms(model, part), [pair.prompt[1:] for pair in part])
            for model, part in timed_apart(self.verifier, pairs)
        ]
