"""What a task is, and its examples: from the hub, from local files in the hub's schema, or from files of one's own."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from spec2seq.errors import UsageError
from spec2seq.io import read_lines
from spec2seq.training.data import Pair, read_pairs, resolve
from spec2seq.training.recipe import DataConfig


@dataclass(frozen=True)
class Example:
    """One line of a task: the text that the model gets, prefix included, and its reference."""

    source: str
    reference: str


@dataclass(frozen=True)
class Published:
    """The authors' checkpoints on the hub: the large model and both little ones; `tokenizer` is theirs."""

    large: str
    unaligned: str
    aligned: str | None
    tokenizer: str


@dataclass(frozen=True)
class Task:
    """A data set on the hub and how it is used, as BiLD's authors and their reproduction do.

    `source` and `target` are fields of a record; a dot leads into an object. `max_source_tokens` cuts sources,
    `max_new_tokens` bounds outputs (128 with the start token there). `split` is what published figures are of.
    """

    name: str
    dataset: str
    source: str
    target: str
    metric: str
    config: str | None = None
    revision: str | None = None
    prefix: str = ""
    max_source_tokens: int = 1024
    max_new_tokens: int = 127
    split: str = "validation"
    published: Published | None = None

    def file(self, split: str | None = None, data: Path | None = None) -> Path:
        """The records of a split: `data` where it is a file, else the copy of the hub's in the folder `data` or
        $SPEC2SEQ_DATA, which is made there if it is not."""
        if data is not None and data.is_file():
            return data
        if data is not None and (not self.dataset or {".tsv", ".jsonl", ".txt"} & {*data.suffixes}):
            raise UsageError(f"{data}: no such file")
        if not self.dataset:
            raise UsageError(f"task {self.name} has no data of its own; give --data FILE (.tsv, .jsonl, also .gz)")
        parts = [self.dataset, self.config or "", split or self.split, self.revision or ""]
        return resolve("hub:" + ":".join(parts).rstrip(":"), data)

    def columns(self, path: Path, **more: object) -> DataConfig:
        """How `path` is read: every line that has a source and a target, whatever their lengths."""
        source, target = self.source, self.target
        if ".tsv" in path.suffixes and not source.isdigit():
            source, target = "0", "1"
        everything = {"min_words": 0, "max_words": 100_000, "max_tokens": self.max_source_tokens, "origin": None}
        return DataConfig(str(path), "", source=source, target=target, prefix=self.prefix, **(everything | more))

    def examples(
        self, split: str | None = None, data: Path | None = None, references: Path | None = None,
        count: int | None = None,
    ) -> list[Example]:  # fmt: skip
        """The first `count` pairs of a split, in the order of the file; without a text on either side they are left
        out, as published. With `references`, that file has the targets of `data`, line by line.

        Raises UsageError for a file that cannot be read, has none, or has not as many lines as the other.
        """
        path, found = self.file(split, data), []
        pairs = read_pairs(path, self.columns(path)) if references is None else self._parallel(path, references)
        for pair in pairs:
            if pair.source.removeprefix(self.prefix).strip() and pair.target.strip():
                found.append(Example(pair.source, pair.target))
            if len(found) == count:
                break
        if not found:
            raise UsageError(f"{path}: no line with a source and a target")
        return found

    def _parallel(self, sources: Path, references: Path) -> list[Pair]:
        left, right = ([line.text for line in read_lines(path)] for path in (sources, references))
        if len(left) != len(right):
            raise UsageError(f"{sources} has {len(left)} lines and {references} {len(right)}; allowed: as many in both")
        return [Pair(self.prefix + source, target) for source, target in zip(left, right, strict=True)]

    def of_fields(self, source: str | None, target: str | None, prefix: str | None, metric: str | None) -> "Task":
        """The same with what is given replaced: for local files."""
        given = {"source": source, "target": target, "prefix": prefix, "metric": metric}
        return dataclasses.replace(self, **{name: value for name, value in given.items() if value is not None})


LOCAL = Task("local", "", "source", "target", "bleu", split="")
