"""The guide's sections on documents and on Transformers: what they show runs as it stands."""

import contextlib
import copy
import gzip
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_sound
from cli.folder import LINES
from typer.testing import CliRunner

from spec2seq.cli import app

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")


def section(title: str, level: str) -> str:
    return re.search(rf"^{level} {title}\n(.*?)(?=^##? |^{level} |\Z)", GUIDE, re.DOTALL | re.MULTILINE).group(1)


@pytest.fixture
def place(tmp_path, monkeypatch, folder):
    """A folder that holds what the examples name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (tmp_path / "my-model").symlink_to(folder)
    (tmp_path / "book.txt").write_text(f"{LINES[0]} {LINES[1]}\n\n{LINES[2]}\n")
    (tmp_path / "articles.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": LINES[3]}).encode()))
    for seed, name in enumerate(("whisper-small", "whisper-tiny")):
        copy.deepcopy(tiny_sound.transformers_model(seed)).float().save_pretrained(tmp_path / "openai" / name)
        tiny_sound.extractor().save_pretrained(tmp_path / "openai" / name)
    soundfile.write(tmp_path / "talk.wav", np.concatenate(tiny_sound.sounds(3)), tiny_sound.RATE)
    return tmp_path


@pytest.mark.filterwarnings("ignore:input . has")
def test_the_examples_run(place):
    blocks = re.findall(r"```python\n(.*?)```", section("Staying on Transformers", "##"), re.DOTALL)
    assert len(blocks) == 5
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(compile(block, "guide.md", "exec"), names)
    lines = printed.getvalue().splitlines()
    assert float(lines[0]) >= 1
    found = [eval(line) for line in lines if line.startswith("[")]
    assert [[*row] for results in found for row in results] == [["translation_text"]] * 3 + [["summary_text"]]
    assert names["custom"].stats.drafted and names["heard"].input_features.shape[2] > 100
    assert (place / "generation/custom_generate/generate.py").is_file()


def test_the_commands_run(place):
    commands = re.findall(r"^    (spec2seq .*)$", section("Documents", "###"), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
    assert len((place / "book.de.txt").read_text().splitlines()) == 3
    assert "output" in json.loads(gzip.decompress((place / "out.jsonl.gz").read_bytes()))
    assert len(gzip.decompress((place / "best.txt.gz").read_bytes()).splitlines()) == 7
