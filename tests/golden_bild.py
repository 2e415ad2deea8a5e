"""Reference data of the original BiLD, see golden/bild-seed11/README.txt: its pair of models and what it computed."""

import functools
import json
from pathlib import Path
from typing import Any

import transformers

from spec2seq import Seq2Seq

FOLDER = Path(__file__).parent / "golden" / "bild-seed11"


@functools.cache
def model(size: str) -> Seq2Seq:
    """`large` or `small`, without a tokenizer."""
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(FOLDER / f"{size}-safetensors")
    return Seq2Seq.from_transformers(theirs)


@functools.cache
def expected(name: str = "expected") -> dict[str, Any]:
    """What the original (`expected`) or Transformers (`expected_hf`) computed; ids begin with the start token."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
