"""A correction task of synthetic noise: the lines of a corpus with typing errors → the lines as they were.

python -m spec2seq.tasks.spelling --out DIR    with ende.train.tsv.gz, ende.dev.tsv and ende.test.tsv in $SPEC2SEQ_DATA

writes spelling.train.tsv.gz, spelling.dev.tsv and spelling.test.tsv: corrupted TAB original TAB origin. No such error
was made by a person; what a model learns of it says how fast decoding is, not how well it corrects.
"""

import argparse
import gzip
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from spec2seq.config import check_range
from spec2seq.errors import Spec2SeqError
from spec2seq.files import replacing
from spec2seq.training.data import read_pairs, resolve
from spec2seq.training.recipe import DataConfig

PARTS = {"train": "tsv.gz", "dev": "tsv", "test": "tsv"}
ROWS = ("qwertzuiop", "asdfghjkl", "yxcvbnm")
NEIGHBOURS = {key: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in ROWS for i, key in enumerate(row)}


def corrupt(text: str, chance: random.Random, rate: float) -> str:
    """`text` with about `rate` of its letters left out, doubled, swapped with the next, or hit beside the key."""
    made, place = [], 0
    while place < len(text):
        letter = text[place]
        place += 1
        if not letter.isalpha() or chance.random() >= rate:
            made.append(letter)
            continue
        kind = chance.choice(("omit", "double", "swap", "miss"))
        if kind == "double":
            made.append(letter * 2)
        elif kind == "swap" and place < len(text) and text[place].isalpha():
            made.append(text[place] + letter)
            place += 1
        elif kind == "miss":
            made.append(chance.choice(NEIGHBOURS.get(letter.lower(), letter)))
    return "".join(made)


def corrupted_lines(path: Path, column: int, rate: float, seed: int) -> Iterator[str]:
    """A line of the new file for every pair of `path`; its errors depend on the seed and the line's number alone."""
    data = DataConfig("", "", source=str(column), target=str(column))
    for number, pair in enumerate(read_pairs(path, data)):
        yield f"{corrupt(pair.source, random.Random(f'{seed} {number}'), rate)}\t{pair.source}\t{pair.origin}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(prog="python -m spec2seq.tasks.spelling", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--data", type=Path, help="folder of the corpus (default: $SPEC2SEQ_DATA)")
    parser.add_argument("--column", type=int, default=0, help="of the corpus: 0 is English, 1 German (%(default)s)")
    parser.add_argument("--rate", type=float, default=0.04, help="of the letters (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    asked = parser.parse_args(arguments)
    check_range("--rate", asked.rate, low=0.0, high=1.0)
    check_range("--column", asked.column, low=0)
    for part, ending in PARTS.items():
        path = asked.out / f"spelling.{part}.{ending}"
        lines = corrupted_lines(resolve(f"ende.{part}.{ending}", asked.data), asked.column, asked.rate, asked.seed)
        open_as = gzip.open if ending.endswith("gz") else open
        with replacing(path) as temporary, open_as(temporary, "wt", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
        print(path)


if __name__ == "__main__":
    try:
        main()
    except Spec2SeqError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
