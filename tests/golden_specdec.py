"""Reference data of the original SpecDec, see golden/*/README.txt: its checkpoints, imported, and what it computed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec2seq import BlockDrafter, Seq2Seq
from spec2seq.decoding.block_drafters import PaperBlockDrafter
from spec2seq.models.fairseq import import_fairseq

FOLDER = Path(__file__).parent / "golden"
SEED11 = "specdec-seed11"
NONTERMINATING = "specdec-nonterminating"
SETTINGS = ((1, 0.0), (5, 3.0), (3, 1.0))  # beta, tau


@dataclass(frozen=True)
class Golden:
    """The imported pair, the folder it lies in, and the original's results."""

    folder: Path
    verifier: Seq2Seq
    drafter: PaperBlockDrafter
    expected: dict[str, Any]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return self.expected["lines"]

    @property
    def sources(self) -> list[list[int]]:
        return [line["src_ids"] for line in self.lines]


def load(name: str, where: Path) -> Golden:
    """`name`: SEED11, or NONTERMINATING with /agreeing or /rejecting behind it."""
    shared = FOLDER / name.partition("/")[0]
    out = where / "pair"
    import_fairseq(shared / "verifier.pt", shared / "dict.en.txt", out, drafter=FOLDER / name / "drafter.pt")
    expected = json.loads((FOLDER / name / "expected.json").read_text(encoding="utf-8"))
    return Golden(out, Seq2Seq.from_pretrained(out), BlockDrafter.from_pretrained(out / "drafter"), expected)
