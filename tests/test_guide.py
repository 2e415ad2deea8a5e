"""The guide's commands and examples run as they stand there, on a tiny model and a little data."""

import contextlib
import gzip
import io
import json
import random
import re
import shlex
import shutil
from pathlib import Path

import pytest
import small_tokenizers
import soundfile
import tiny
import tiny_sound
import torch
import yaml
from cli.folder import LINES, make_folder
from evaluation.conftest import local_workers  # noqa: F401
from typer.testing import CliRunner

from spec2seq.cli import app

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
# test_guide_of_the_dropin.py runs these, and the examples of the section on Transformers; a GPU is seldom there
ELSEWHERE = ("--document", "book.txt", "--device cuda")
# What keeps a command short. It stands behind what the guide says.
SHORT = {
    "make-drafter": ["--minutes", "0.02", "--dev-lines", "6", "--block-size", "3"],
    "train": ["--data", "."],
    "distill": ["--max-new-tokens", "12"],
    "bench": ["--methods", "greedy,lookup", "--peers", "none", "--dtype", "float32", "--batch-sizes", "1",
              "--lines", "2", "--rounds", "1", "--quality-lines", "2"],
}  # fmt: skip
RECIPE = {
    "model": {"width": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "feed_forward": 32},
    "data": {"min_words": 1, "max_ratio": 20.0},
    "vocabulary": {"size": 330},
    "training": {"max_steps": 4, "budget_minutes": None, "cooldown": None, "tokens_per_batch": 256, "threads": 1,
                 "average": 1},
    "evaluation": {"dev_lines": 2, "max_new_tokens": 4},
}  # fmt: skip


def commands() -> list[str]:
    """Every command with arguments, in a line of its own or in the text, in order."""
    found = re.findall(r"^    (spec2seq .+)$|`(spec2seq [a-z-]+(?: [^`]+))`", GUIDE, re.MULTILINE)
    return list(dict.fromkeys(line or inline.replace("\n", " ") for line, inline in found))


def test_every_command_is_in_a_test():
    known = (*WALK, *MORE)
    here = [command for command in commands() if not any(part in command for part in ELSEWHERE)]
    assert here == [*known]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that holds what the guide names."""
    place = tmp_path_factory.mktemp("guide")
    model = make_folder(place / "my-model")
    (place / "models").mkdir()
    for name in ("VERIFIER", "models/ende", "A", "B", "C"):
        (place / name).symlink_to(model)
    make_ears(place)
    (place / "DRAFTER").symlink_to(model / "little")
    shutil.copytree(model, place / "MODEL")
    (place / "lines.txt").write_text("\n".join(LINES[:4]) + "\n")
    (place / "FILE").symlink_to("lines.txt")
    rows = [f"{line}\t{line.upper()}" for line in many(120)]
    (place / "train.txt").write_text("".join(row.split("\t")[0] + "\n" for row in rows))
    (place / "test.tsv").write_text("".join(row + "\n" for row in rows[:6]))
    (place / "outputs.jsonl").write_text('{"source": "a", "target": "b", "tokens": [5, 6, 7, 5, 0]}\n')
    (place / "data").mkdir()
    for name in ("train.tsv.gz", "data/ende.train.tsv.gz"):
        (place / name).write_bytes(gzip.compress("".join(row + "\torigin\n" for row in rows).encode()))
    for name in ("dev", "test"):
        (place / f"data/ende.{name}.tsv").write_text("".join(row + "\n" for row in rows[:4]))
    for name in ("train.en", "train.de", "out.txt", "ref.txt"):
        (place / name).write_text("\n".join(LINES) + "\n")
    (place / "recipes").mkdir()
    recipe = yaml.safe_load((ROOT / "recipes/ende-verifier.yaml").read_text())
    for part, values in RECIPE.items():
        recipe[part] = {name: value for name, value in (recipe[part] | values).items() if value is not None}
    (place / "recipes/ende-verifier.yaml").write_text(yaml.safe_dump(recipe))
    return place


@pytest.fixture(autouse=True)
def one_thread():
    """As before, after commands that take two."""
    yield
    torch.set_num_threads(1)


def many(count: int) -> list[str]:
    """Different short texts."""
    choose = random.Random(0)
    words = sorted({word.strip(".") for line in LINES for word in line.split()})
    made = (" ".join(choose.choices(words, k=choose.randint(2, 6))) for _ in range(2 * count))
    return list(dict.fromkeys(made))[:count]


def make_ears(place: Path) -> None:
    """Two models that hear, of the names in the guide and tiny, and a sound."""
    for seed, name in enumerate(("openai/whisper-small", "openai/whisper-tiny")):
        tiny_sound.seq2seq(seed).save_pretrained(place / name)
    soundfile.write(place / "talk.wav", tiny_sound.sounds(1, seconds=4, seed=2)[0], tiny_sound.RATE)
    for number, sound in enumerate(tiny_sound.sounds(20)):
        soundfile.write(place / f"{number}.wav", sound, tiny_sound.RATE)
    (place / "sounds.txt").write_text("".join(f"{number}.wav\n" for number in range(20)), encoding="utf-8")


def invoke(command: str) -> str:
    """Run a command; what it printed."""
    name, *arguments = shlex.split(command)[1:]
    result = CliRunner().invoke(app, [name, *arguments, *SHORT.get(name, [])])
    assert result.exit_code == 0, f"{command}: {result.output}"
    return result.output


WALK = (
    "spec2seq translate lines.txt --model my-model --method greedy --output greedy.txt",
    "spec2seq translate lines.txt --model my-model --method lookup --output lookup.txt --stats",
    "spec2seq pairs my-model my-model/little",
    "spec2seq translate lines.txt --model my-model --drafter my-model/little --method assisted --output assisted.txt",
    "spec2seq make-drafter my-model --sources train.txt --out my-model/drafter",
    "spec2seq translate lines.txt --model my-model --output specdec.txt --json",
    "spec2seq verify-lossless lines.txt --model my-model",
    "spec2seq verify-lossless lines.txt --model my-model --method lookup",
)
MORE = (
    "spec2seq shortlist MODEL/little outputs.jsonl",
    "spec2seq verify-lossless FILE",
    "spec2seq pairs VERIFIER DRAFTER",
    "spec2seq transcribe talk.wav --model openai/whisper-small",
    "spec2seq transcribe talk.wav --model openai/whisper-small --drafter openai/whisper-tiny --format srt --out subs",
    "spec2seq make-drafter openai/whisper-small --sources sounds.txt --out my-drafter --language en",
    "spec2seq transcribe talk.wav --model openai/whisper-small --drafter my-drafter --language en",
    "spec2seq train recipes/ende-verifier.yaml --out runs/verifier",
    "spec2seq make-drafter MODEL --sources train.txt --out MODEL/drafter",
    "spec2seq make-drafter openai/whisper-small --sources sounds.txt --out whisper-drafter --language en --dtype int8",
    "spec2seq distill train.tsv.gz --model MODEL --method greedy --out train.jsonl",
    "spec2seq prepare train.en train.de --out train.tsv.gz",
    "spec2seq average A B C --out MEAN",
    "spec2seq score --hyp out.txt --ref ref.txt --metrics bleu,chrf,compound-bleu,rouge --language de",
    "spec2seq bench --models models/ende --data test.tsv --threads 2 --out out/bench",
    "spec2seq report out/bench",
)


def test_a_walk_with_ones_own_model(place, monkeypatch):
    monkeypatch.chdir(place)
    printed = [invoke(command) for command in WALK]
    assert "one vocabulary" in printed[2] and "tokens per verifier call" in printed[4]
    assert all("passed: 4 lines" in report and "0 bugs" in report for report in printed[6:])
    greedy = (place / "greedy.txt").read_text().splitlines()
    found = [json.loads(line) for line in (place / "specdec.txt").read_text().splitlines()]
    assert len(greedy) == 4 and [row["text"] for row in found] == greedy and found[0]["stats"]["drafted"] >= 0
    assert all((place / name).read_text().splitlines() == greedy for name in ("lookup.txt", "assisted.txt"))
    block = examples()[0]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(block, "guide.md", "exec"), {})
    assert len(said.getvalue().splitlines()) == 3
    names = {"lines": LINES[:3]}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(block + examples()[-1], "guide.md", "exec"), names)
    served = dict(line.split(" → ") for line in said.getvalue().splitlines()[3:])
    texts = names["model"].generate(names["lines"], max_new_tokens=20).texts
    assert served == dict(zip(names["lines"], texts, strict=True))


@pytest.mark.usefixtures("local_workers")
@pytest.mark.parametrize("command", MORE)
def test_the_other_commands_run(place, monkeypatch, command):
    monkeypatch.chdir(place)
    monkeypatch.setattr("spec2seq.options.bundled_model", lambda: "models/ende")
    before = set(place.rglob("*"))
    printed = invoke(command)
    words = shlex.split(command)
    assert printed or words[1] == "transcribe"
    if "--out" in words:
        out = place / words[words.index("--out") + 1]
        assert out.exists() and (out not in before or out.name == "train.tsv.gz")


def examples() -> list[str]:
    """The examples outside of the section on Transformers."""
    rest = re.sub(r"^## Staying on Transformers\n.*?(?=^## )", "", GUIDE, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"```python\n(.*?)```", rest, re.DOTALL)


def test_the_other_examples_run(tmp_path, monkeypatch):
    _, loop, own, languages, speech, _ = examples()
    model = tiny.seq2seq("bart")
    names = {"drafter": tiny.noisy_copy(model, 0.02).drafter()}
    exec(compile(loop, "guide.md", "exec"), names)
    assert model.generate([[5, 6, 2]], names["method"], max_new_tokens=4).rows
    sources = tiny.sources(model, 9, 4)
    names["outputs"] = model.generate(sources, max_new_tokens=12).sequences
    exec(compile(own, "guide.md", "exec"), names)
    found = model.generate(sources, names["method"], max_new_tokens=12)
    assert found.sequences == names["outputs"] and found.stats.accepted > 5
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / re.search(r'"(facebook/.*?)"', languages).group(1)  # of this name, and tiny
    tokenizer = small_tokenizers.nllb(tmp_path)
    tiny.transformers_model("m2m_100", vocabulary=len(tokenizer) + 6).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    exec(compile("from spec2seq import Seq2Seq\n" + languages, "guide.md", "exec"), names)
    assert (names["model"].tgt_lang, names["back"].tgt_lang) == ("deu_Latn", "eng_Latn")
    assert names["back"].generate(["the cache"], max_new_tokens=4).rows
    make_ears(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(speech, "guide.md", "exec"), names)
    assert said.getvalue().count(" seconds: ") > 1 and names["found"].stats.drafted
