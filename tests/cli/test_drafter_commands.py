"""spec2seq distill and make-drafter."""

import json
import shutil
from pathlib import Path

from cli.folder import LINES, POSITIONS

from spec2seq import Seq2Seq
from spec2seq.training import make_drafter as making

FACTS = {
    "parameters": 1000, "train_lines": 96, "minutes": 1.5, "verifier": {"parameters": 10_000},
    "test": {"tokens_per_verifier_call": 2.5}, "lossless": {"lines": 4, "equal": 3, "ties": 1},
    "speedup": {"median": 1.5, "low": 1.25, "high": 1.75, "lines": 4, "rounds": 5, "dtype": "float32", "threads": 2},
}  # fmt: skip


def test_distill_writes_what_the_model_does(run, folder, lines, tmp_path):
    out = tmp_path / "out.jsonl"
    options = ("--model", folder, "--method", "greedy", "--max-new-tokens", 20, "--lines", 3)
    result = run("distill", lines, *options, "--out", out)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["source"] for record in records] == [LINES[0], LINES[1], LINES[3]]
    wanted = Seq2Seq.from_pretrained(folder).generate([record["source"] for record in records], max_new_tokens=20)
    tokens = [row.tokens for row in wanted.rows]
    assert [record["tokens"] for record in records] == tokens
    assert result.stdout.startswith(f"{out}: 3 lines, {sum(map(len, tokens))} tokens, ")
    assert result.stderr.startswith("chunk 1 of 1: ")


def test_distill_keeps_to_what_the_model_can_do(run, folder, tmp_path, monkeypatch):
    path, out = tmp_path / "corpus.txt", tmp_path / "out.jsonl"
    path.write_text(f"{'cache ' * 300}\n{LINES[0]}\n")
    command = ("distill", path, "--model", folder, "--method", "greedy", "--out", out)
    assert run(*command).stderr.endswith(f"1 sources were left out: they have more than {POSITIONS} tokens\n")
    model = Seq2Seq.from_pretrained(folder)
    wanted = model.generate([model.source_ids("cache " * 300, "line 1", True), LINES[0]]).sequences
    monkeypatch.setenv("RANK", "1")
    assert run(*command, "--truncate").stdout == ""  # of several processes the first speaks
    assert [json.loads(line)["tokens"] for line in out.read_text().splitlines()] == wanted


def test_the_prefix_of_a_recipe_is_read_and_not_written(run, folder, tmp_path):
    recipe, corpus, out = (tmp_path / name for name in ("r.yaml", "corpus.tsv", "out.jsonl"))
    recipe.write_text(
        "{name: r, data: {train: a, dev: b, prefix: 'Read: ', max_tokens: 60}, training: {max_steps: 1},"
        " evaluation: {max_new_tokens: 20}}"
    )
    corpus.write_text("".join(f"{line}\t\n" for line in LINES[:3]))
    command = ("distill", corpus, "--model", folder, "--method", "greedy", "--max-new-tokens", 20, "--out", out)
    run(*command, "--recipe", recipe)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["source"] for record in records] == LINES[:3]
    wanted = Seq2Seq.from_pretrained(folder, prefix="Read: ").generate(LINES[:3], max_new_tokens=20).sequences
    assert [record["tokens"] for record in records] == wanted


def test_distill_refuses_what_it_cannot_read(fails, folder, tmp_path):
    path, out = tmp_path / "corpus.csv", tmp_path / "out.jsonl"
    path.write_text("a\n")
    fails(2, ["unknown kind of data", ".txt"], "distill", path, "--model", folder, "--method", "greedy", "--out", out)
    fails(2, ["recipe.yaml", "no such file"], "distill", path, "--out", out, "--recipe", "recipe.yaml")
    fails(2, ["none.txt: no such file"], "distill", "none.txt", "--model", "nowhere", "--out", out)
    assert not out.exists()


def test_make_drafter_passes_everything_on_and_reports(run, monkeypatch, tmp_path):
    seen = []

    def make(model, sources, out, report, **options):
        seen.append((model, sources, out, options))
        report("step 1")
        return making.Made(out, FACTS)

    monkeypatch.setattr(making, "make_drafter", make)
    command = ("make-drafter", "some/model", "--sources", "a.txt", "--out", tmp_path / "d")
    result = run(*command)
    defaults = dict(field=None, src_lang=None, tgt_lang=None, prefix="", language=None, task="transcribe",
                    timestamps=None, dtype="float32", lines=None, minutes=30.0, layers=1, block_size=6,
                    dev_lines=None)  # fmt: skip
    assert seen == [("some/model", Path("a.txt"), tmp_path / "d", defaults)]
    assert result.stderr == "step 1\n"
    assert result.stdout.splitlines() == [
        f"{tmp_path / 'd'}: 1,000 parameters (10.0% of the model's), learned from 96 outputs in 1.5 minutes",
        "lossless: 3 of 4 held-out lines equal greedy's token ids, 1 numerical ties",
        "tokens per verifier call: 2.50 with whole blocks",
        "speed-up over own greedy: 1.50 (quartiles 1.25 to 1.75; batch 1, float32, 2 threads, 4 lines, 5 rounds)",
    ]
    options = dict(field="text", src_lang="en", tgt_lang="de", prefix="to de: ", language="en", task="translate",
                   dtype="int8", lines=9, minutes=1.5, layers=2, block_size=4, dev_lines=3)  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    run(*command, *flags, "--no-timestamps")
    assert seen[1][3] == options | {"timestamps": False}


def test_make_drafter_names_what_is_wrong(fails, folder, lines, tmp_path):
    out = tmp_path / "d"
    fails(2, ["absent.txt", "no such file"], "make-drafter", folder, "--sources", tmp_path / "absent.txt", "--out", out)
    fails(2, ["layers is 3", "from 1 to 2"], "make-drafter", folder, "--sources", lines, "--out", out, "--layers", 3)
    fails(1, ["exists already"], "make-drafter", folder, "--sources", lines, "--out", tmp_path)
    assert not out.exists()


def test_shortlist_is_written_beside_the_little_model(run, fails, folder, lines, tmp_path):
    little, out = tmp_path / "little", tmp_path / "out.jsonl"
    shutil.copytree(folder / "little", little)
    run("distill", lines, "--model", folder, "--method", "greedy", "--max-new-tokens", 20, "--out", out)
    result = run("shortlist", little, out, "--covered", 0.9)
    chosen = json.loads((little / "shortlist.json").read_text())
    vocabulary = json.loads((little / "config.json").read_text())["vocab_size"]
    assert result.stdout == f"{little / 'shortlist.json'}: {len(chosen)} of {vocabulary} tokens\n"
    options = ("--model", folder, "--method", "assisted", "--max-new-tokens", 20)
    assert run("translate", lines, *options, "--drafter", little).stdout == run("translate", lines, *options).stdout
    fails(2, ["covered is 2.0", "0.5 to 1.0"], "shortlist", little, out, "--covered", 2)
    fails(2, ["no such file"], "shortlist", little, tmp_path / "none.jsonl")
