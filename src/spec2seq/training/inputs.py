"""What a verifier is given, texts or sounds: to learn from, to be scored on, and to decode."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from spec2seq.api import Seq2Seq
from spec2seq.decoding.scheduler import Source
from spec2seq.training.batches import Collator, TokenizedPairs
from spec2seq.training.cache import tokenized
from spec2seq.training.data import Pair, read_pairs
from spec2seq.training.recipe import DataConfig
from spec2seq.training.sounds import HeardCollator, HeardRows, encoded, heard_rows, spectrograms, timed_apart


class Asked(NamedTuple):
    """Sources for a model, and what each output is told to begin with."""

    model: Seq2Seq
    sources: list[Source]
    prompts: list[Sequence[int]]


class Inputs(Protocol):
    """Of one verifier."""

    verifier: Seq2Seq

    def training_rows(
        self, path: Path, data: DataConfig, tokenizer: Any, folder: Path, report: Callable[[str], None]
    ) -> Any:
        """The rows of a file that a recipe wants; what was made of them is kept in `folder`."""

    def rows(self, pairs: Sequence[Pair]) -> Sequence[Any]:
        """Items for the collator."""

    def collator(self) -> Collator: ...

    def asked(self, pairs: Sequence[Pair]) -> list[Asked]:
        """The same to be decoded; those that the model must be asked differently apart."""


def inputs_of(verifier: Seq2Seq) -> Inputs:
    """Those of a model that reads or hears."""
    return Texts(verifier) if verifier.model.architecture.sound is None else Sounds(verifier)


class _Inputs:
    kind: type[Collator]

    def __init__(self, verifier: Seq2Seq):
        self.verifier = verifier

    def collator(self) -> Collator:
        a = self.verifier.model.architecture
        return self.kind(a.pad_token_id, a.decoder_start_token_id)


class Texts(_Inputs):
    """See `Inputs`."""

    kind = Collator

    def training_rows(
        self, path: Path, data: DataConfig, tokenizer: Any, folder: Path, report: Callable[[str], None]
    ) -> TokenizedPairs:
        return tokenized(path, data, tokenizer, folder)

    def rows(self, pairs: Sequence[Pair]) -> list[tuple[Source, tuple[int, ...]]]:
        return [(ids, pair.tokens) for ids, pair in zip(self._sources(pairs), pairs, strict=True)]

    def asked(self, pairs: Sequence[Pair]) -> list[Asked]:
        return [Asked(self.verifier, self._sources(pairs), [()] * len(pairs))]

    def _sources(self, pairs: Sequence[Pair]) -> list[Source]:
        return [self.verifier.source_ids(pair.source, f"line {n}", True) for n, pair in enumerate(pairs, 1)]


class Sounds(_Inputs):
    """See `Inputs`."""

    kind = HeardCollator

    def training_rows(
        self, path: Path, data: DataConfig, tokenizer: Any, folder: Path, report: Callable[[str], None]
    ) -> HeardRows:
        return heard_rows(self.verifier, list(read_pairs(path, data)), data.max_tokens, path, folder, report)

    def rows(self, pairs: Sequence[Pair]) -> HeardRows:
        return HeardRows(encoded(self.verifier, spectrograms(self.verifier, pairs)), pairs)

    def asked(self, pairs: Sequence[Pair]) -> list[Asked]:
        return [
            Asked(model, list(spectrograms(model, part)), [pair.prompt[1:] for pair in part])
            for model, part in timed_apart(self.verifier, pairs)
        ]
