"""A small invented language pair on disk, recipes that fit it in seconds, and a verifier that learned nothing."""

import copy
import random
from pathlib import Path

import pytest
import tiny

from spec2seq.training.recipe import parse_recipe

WORDS = {
    "the": "die", "file": "datei", "cache": "ablage", "is": "ist", "full": "voll", "empty": "leer", "a": "eine",
    "program": "programm", "reads": "liest", "writes": "schreibt", "option": "option", "long": "lange", "of": "von",
    "line": "zeile", "text": "text", "prints": "druckt", "every": "jede", "name": "name", "without": "ohne",
    "error": "fehler",
}  # fmt: skip


def _lines(count: int, seed: int) -> str:
    choose = random.Random(seed)
    rows = []
    for _ in range(count):
        words = choose.choices(list(WORDS), k=choose.randint(2, 12))
        rows.append(f"{' '.join(words)}\t{' '.join(WORDS[word] for word in words)}\tinvented")
    return "\n".join(rows) + "\n"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("train", 600, 1), ("dev", 12, 2), ("test", 12, 3)):
        (folder / f"toy.{name}.tsv").write_text(_lines(count, seed), encoding="utf-8")
    return folder


@pytest.fixture
def values() -> dict:
    """A tiny recipe as a mapping, for tests to change before `parse_recipe`."""
    return {
        "name": "toy",
        "model": {"width": 16, "encoder_layers": 2, "decoder_layers": 2, "heads": 2, "feed_forward": 32},
        "data": {"train": "toy.train.tsv", "dev": "toy.dev.tsv", "test": "toy.test.tsv"},
        "vocabulary": {"size": 310, "character_coverage": 1.0},
        "training": {
            "max_steps": 12, "tokens_per_batch": 256, "learning_rate": 5e-3, "warmup_steps": 4, "threads": 1,
            "save_minutes": 0.0, "log_seconds": 0.0, "average": 3,
        },
        "evaluation": {"dev_lines": 4, "max_new_tokens": 8, "every_minutes": 60},
    }  # fmt: skip


@pytest.fixture
def recipe(values: dict):
    return parse_recipe(values)


@pytest.fixture(scope="session")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Marian; its words are w1, w2…"""
    folder = tmp_path_factory.mktemp("verifier")
    model = copy.deepcopy(tiny.transformers_model("marian")).float()
    model.save_pretrained(folder)
    tiny.tokenizer(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Sources for it, all different."""
    rows = tiny.sources(tiny.transformers_model("marian"), 150, 7)
    return list(dict.fromkeys(" ".join(f"w{token}" for token in row[:-1]) for row in rows))
