"""Data sets of the hub as local JSONL, one record a line in exactly the hub's fields."""

import json
from pathlib import Path

from spec2seq.errors import Spec2SeqError, UsageError, first_line, missing_extra
from spec2seq.files import replacing

MARK = "hub:"


def local_name(name: str) -> str:
    """`hub:DATASET[:CONFIG]:SPLIT[:REVISION]` → the name of its copy, such as EdinburghNLP.xsum.train.jsonl.

    Raises UsageError for another shape.
    """
    dataset, config, split, _ = _parts(name)
    return ".".join(part for part in (dataset.replace("/", "."), config, split) if part) + ".jsonl"


def download(name: str, path: Path) -> None:
    """Write a split of a data set to `path`. Raises Spec2SeqError if the package datasets is missing or the hub has no
    such data."""
    dataset, config, split, revision = _parts(name)
    try:
        from datasets import load_dataset
    except ImportError:
        raise missing_extra("datasets", "hub") from None
    try:
        records = load_dataset(dataset, config or None, split=split, revision=revision or None)
    except Exception as error:  # connections, names, splits: anything, of many kinds
        reason = first_line(error)
        raise Spec2SeqError(f"{name}: not to be had from the hub: {reason}; a file {path} would do") from None
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(dict(record), ensure_ascii=False) + "\n")


def _parts(name: str) -> tuple[str, str, str, str]:
    """Data set, configuration, split and revision."""
    fields = name.removeprefix(MARK).split(":")
    if len(fields) == 2:
        fields.insert(1, "")
    if not 3 <= len(fields) <= 4 or not fields[0] or not fields[2]:
        raise UsageError(f"data is {name!r}; allowed: hub:DATASET:SPLIT, hub:DATASET:CONFIG:SPLIT[:REVISION]")
    return fields[0], fields[1], fields[2], fields[3] if len(fields) == 4 else ""
