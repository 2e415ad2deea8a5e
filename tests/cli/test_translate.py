"""translate and generate on a tiny model: order, empty lines, JSON, and that every option of a run arrives."""

import json

import pytest
import torch
from cli.folder import LINES, POSITIONS

from spec2seq import Greedy, Seq2Seq
from spec2seq.version import __version__


@pytest.fixture(scope="module")
def greedy(folder) -> list[str]:
    return [" ".join(text.splitlines()) for text in Seq2Seq.from_pretrained(folder).generate(LINES, Greedy()).texts]


def objects(result) -> list[dict]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_version_and_help(run):
    assert run("--version").stdout == f"spec2seq {__version__}\n"
    for command in ("translate", "generate", "train", "verify-lossless", "demo"):
        assert command in run("--help").stdout
        assert run(command, "--help").exit_code == 0


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_line_out_for_each_line_in(run, folder, lines, greedy, batch_size):
    result = run("translate", lines, "--model", folder, "--batch-size", batch_size)
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.split("\n") == [greedy[0], "", *greedy[1:4], "", greedy[4], ""]


def test_stdin_dash_crlf_and_byte_order_mark(run, folder, greedy):
    for text in (f"\ufeff{LINES[0]}\r\n\r\n{LINES[1]}", f"{LINES[0]}\n\n{LINES[1]}\n"):
        result = run("translate", "-", "--model", folder, "--method", "greedy", input=text.encode())
        assert result.stdout == f"{greedy[0]}\n\n{greedy[1]}\n"
    only_empty = run("translate", "--model", folder, input="\n\n")
    assert only_empty.stdout == "\n\n"


def test_separators_inside_a_line_do_not_split_it(run, folder):
    result = run("translate", "--model", folder, "--method", "greedy", input=f"a\u2028b\x0cc\x1ed\n{LINES[0]}\n")
    assert result.stdout.count("\n") == 2


@pytest.mark.parametrize("method", ["greedy", "beam", "sample", "assisted", "bild", "lookup"])
def test_json_of_every_method(run, folder, lines, method):
    result = objects(run("translate", lines, "--model", folder, "--method", method, "--json", "--trace"))
    assert len(result) == 7
    for row in result:
        assert list(row) == ["text", "tokens", "stats", "trace"]
        assert row["stats"]["new_tokens"] == len(row["tokens"]) == len(row["trace"])
        assert set(row["trace"]) <= {"d", "v"}
    empty = result[1]
    assert empty["text"] == "" and empty["tokens"] == [] and empty["stats"]["verifier_calls"] == 0
    assert result[0]["stats"]["verifier_calls"] > 0 and "tokens_per_verifier_call" in result[0]["stats"]
    plain = objects(run("translate", lines, "--model", folder, "--method", "greedy", "--json"))
    assert list(plain[0]) == ["text", "tokens", "stats"]


def test_sampling_depends_on_the_seed_and_takes_a_drafter(run, folder, lines):
    def sample(*more):
        return run("translate", lines, "--model", folder, "--method", "sample", *more).stdout

    assert sample("--seed", 1) == sample("--seed", 1, "--batch-size", 1) != sample("--seed", 2)
    drafted = objects(run("translate", lines, "--model", folder, "--method", "sample", "--drafter", folder / "little",
                          "--json"))  # fmt: skip
    assert drafted[0]["stats"]["drafted"] > 0


def test_options_of_a_run_reach_the_library(run, folder, monkeypatch):
    loaded, streamed, threads = [], [], []
    load, stream = Seq2Seq.from_pretrained.__func__, Seq2Seq.stream

    def spy_load(cls, name, **place):
        loaded.append((str(name), place))
        return load(cls, name, **place)

    def spy_stream(self, sources, method, **settings):
        streamed.append(settings)
        return stream(self, sources, method, **settings)

    monkeypatch.setattr(Seq2Seq, "from_pretrained", classmethod(spy_load))
    monkeypatch.setattr(Seq2Seq, "stream", spy_stream)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    little = folder / "little"
    result = run(
        "translate", "--model", folder, "--drafter", little, "--dtype", "float64", "--device", "cpu", "--threads", 1,
        "--batch-size", 3, "--max-new-tokens", 2, "--truncate", "--json", input="word " * 500,
    )  # fmt: skip
    place = {"dtype": "float64", "device": "cpu"}
    assert len(objects(result)[0]["tokens"]) <= 2
    assert sorted(loaded) == [(str(folder), place), (str(little), place)]
    assert threads == [1]
    assert streamed[0]["batch_size"] == 3 and streamed[0]["max_new_tokens"] == 2 and streamed[0]["trace"] is False


def test_config_file(run, folder, lines, tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text(f"model: {folder}\nmethod: assisted\nnum_assistant_tokens: 3\nmax_new_tokens: 4\n")
    rows = objects(run("translate", lines, "--config", path, "--json"))
    assert max(len(row["tokens"]) for row in rows) == 4
    assert max(len(row["stats"]["drafted_at"]) for row in rows) == 3
    rows = objects(run("translate", lines, "--config", path, "--json", "--num-assistant-tokens", 1))
    assert max(len(row["stats"]["drafted_at"]) for row in rows) == 1


def test_stats_go_to_stderr(run, folder, lines):
    result = run("translate", lines, "--model", folder, "--stats", "--method", "lookup")
    assert "tokens_per_verifier_call" in result.stderr and "tokens_per_verifier_call" not in result.stdout


def test_output_file_appears_whole(run, folder, lines, greedy, tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    result = run("translate", lines, "--model", folder, "--output", target)
    assert result.exit_code == 0 and result.stdout == ""
    assert target.read_text().split("\n")[0] == greedy[0] and target.read_text().count("\n") == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.txt", "out.txt"]


def test_empty_input_gives_empty_output(run, folder, tmp_path):
    empty, target = tmp_path / "empty.txt", tmp_path / "out.txt"
    empty.touch()
    result = run("translate", empty, "--model", folder)
    assert (result.exit_code, result.output) == (0, "")
    run("translate", empty, "--model", folder, "--output", target)
    assert target.read_bytes() == b""


def test_truncate_cuts_to_the_models_positions(run, folder, monkeypatch):
    seen = []
    stream = Seq2Seq.stream

    def spy(self, sources, method, **settings):
        return stream(self, (seen.append(source) or source for source in sources), method, **settings)

    monkeypatch.setattr(Seq2Seq, "stream", spy)
    result = run("translate", "--model", folder, "--truncate", input="word " * 20_000)
    assert result.exit_code == 0 and result.stdout.count("\n") == 1
    assert len(seen[0]) == POSITIONS and seen[0][-1] == 0


def test_generate_keeps_the_fields(run, folder, greedy):
    given = [{"id": 7, "src": LINES[0], "more": {"a": [1, None]}}, {"src": "", "ä": "ö"}, {"src": LINES[1]}]
    text = "".join(json.dumps(item) + "\n" for item in given)
    rows = objects(run("generate", "--model", folder, "--field", "src", "--method", "greedy", input=text))
    assert [{key: row[key] for key in item} for row, item in zip(rows, given, strict=True)] == given
    assert list(rows[0]) == ["id", "src", "more", "output", "tokens", "stats"]
    assert [" ".join(row["output"].splitlines()) for row in rows] == [greedy[0], "", greedy[1]]
    traced = objects(run("generate", "--model", folder, "--field", "src", "--trace", input=text))
    assert [len(row["trace"]) for row in traced] == [len(row["tokens"]) for row in rows]


def test_n_best_lists(run, folder, greedy):
    arguments = ("translate", "--model", folder, "--method", "beam", "--num-beams", "4", "--n-best", "3")
    plain = run(*arguments, input=f"{LINES[0]}\n\n{LINES[1]}\n").stdout.splitlines()
    assert [line.split(" ||| ")[0] for line in plain] == ["0"] * 3 + ["1"] + ["2"] * 3
    assert plain[3] == "1 |||  ||| 0.000000"
    scores = [float(line.split(" ||| ")[2]) for line in plain[:3]]
    assert scores == sorted(scores, reverse=True) and scores[0] < 0
    best = run(*arguments[:-2], input=f"{LINES[0]}\n").stdout.strip()
    assert plain[0].split(" ||| ")[1] == best
    (found,) = (json.loads(line) for line in run(*arguments, "--json", input=f"{LINES[0]}\n").stdout.splitlines())
    assert [one["text"] for one in found["hypotheses"]] == [line.split(" ||| ")[1] for line in plain[:3]]
    assert [one["score"] for one in found["hypotheses"]] == pytest.approx(scores, abs=1e-3)  # alone, not in a batch
    assert found["text"] == best


def test_a_prefix_and_a_language(run, folder, fails):
    with_prefix = run("translate", "--model", folder, "--prefix", LINES[1] + " ", input=LINES[0])
    assert with_prefix.stdout == run("translate", "--model", folder, input=f"{LINES[1]} {LINES[0]}").stdout
    words = ["tgt_lang is 'deu_Latn', but this model's tokenizer has no language tokens"]
    fails(2, words, "translate", "--model", folder, "--tgt-lang", "deu_Latn", input=LINES[0])
