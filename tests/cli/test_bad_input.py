"""Each kind of bad input: one line on stderr that names it, the right exit code, nothing half-written."""

import json
import shutil

import pytest
from cli.folder import LINES, edit_json, make_folder

from spec2seq import Seq2Seq


def test_missing_file_and_folder_instead(fails, folder, tmp_path):
    for command in ("translate", "generate", "verify-lossless"):
        fails(2, ["absent.txt", "no such file"], command, tmp_path / "absent.txt", "--model", folder)
    fails(2, [str(tmp_path), "directory"], "translate", tmp_path, "--model", folder)


def test_wrong_encoding_names_line_and_byte(fails, folder, tmp_path):
    path, target = tmp_path / "latin1.txt", tmp_path / "out.txt"
    path.write_bytes("fine\nKäse\n".encode("latin-1"))
    fails(1, ["latin1.txt: line 2, byte 2: 0xE4 is not UTF-8"], "translate", path, "--model", folder, "-o", target)
    fails(1, ["line 2, byte 2"], "verify-lossless", path, "--model", folder)
    assert [item.name for item in tmp_path.iterdir()] == ["latin1.txt"]


def test_source_too_long_is_said_before_anything_is_written(fails, folder, tmp_path):
    path, target = tmp_path / "long.txt", tmp_path / "out.txt"
    path.write_text(f"{LINES[0]}\n\n{'word ' * 100}\n{LINES[1]}\n")
    ids = len(Seq2Seq.from_pretrained(folder).encode_text("word " * 100))
    words = [f"long.txt: line 3 has {ids} tokens", "the model allows 64", "--truncate"]
    fails(1, words, "translate", path, "--model", folder)
    fails(1, words, "translate", path, "--model", folder, "--output", target)
    fails(1, words, "verify-lossless", path, "--model", folder)
    assert [item.name for item in tmp_path.iterdir()] == ["long.txt"]


def test_a_bad_line_of_a_pipe_ends_the_output_after_the_lines_before_it(run, folder):
    result = run("translate", "--model", folder, input=f"{LINES[0]}\n\n{LINES[1]}\n{'word ' * 100}\n{LINES[2]}\n")
    assert result.exit_code == 1 and result.stdout.count("\n") == 3
    assert "stdin: line 4 has" in result.stderr and result.stderr.count("\n") == 1


def test_a_line_of_100_000_characters(fails, folder, tmp_path_factory):
    fails(1, ["stdin: line 1 has", "allows 64"], "translate", "--model", folder, input="a " * 50_000)
    unlimited = make_folder(tmp_path_factory.mktemp("models") / "t5", "t5")
    fails(1, ["line 1 has", "4096"], "translate", "--model", unlimited, input="a " * 50_000)


def test_vocabularies_that_differ(fails, folder, lines, tmp_path):
    other = make_folder(tmp_path / "other", lines=[line[::-1] for line in LINES])
    words = ["different vocabularies", "token"]
    fails(2, words, "translate", lines, "--model", folder, "--drafter", other / "little", "-o", tmp_path / "out.txt")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("flags", [("--method", "bild", "--fallback-threshold", "1.5"), ("--tau", "-1"),
                                   ("--method", "beam", "--num-beams", "0"), ("--batch-size", "x")])  # fmt: skip
def test_values_out_of_range(fails, folder, flags):
    fails(2, [flags[-2], repr(flags[-1]), "allowed"], "translate", "--model", folder, *flags, input="a\n")


def test_more_tokens_than_positions(fails, folder):
    fails(2, ["max_new_tokens is 65", "1 to 64"], "translate", "--model", folder, "--max-new-tokens", 65, input="a\n")


def test_a_folder_that_is_no_model(fails, folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(1, ["empty", "config.json is missing"], "translate", "--model", empty, input="a\n")
    fails(1, ["./absent", "no such folder"], "translate", "--model", "./absent", input="a\n")
    for spoil, words in (
        (lambda copy: (copy / "model.safetensors").write_bytes(b"not weights"), ["broken0"]),
        (lambda copy: (copy / "model.safetensors").unlink(), ["broken1"]),
        (lambda copy: (copy / "config.json").write_text("{"), ["broken2"]),
        (lambda copy: edit_json(copy / "config.json", model_type="gpt2"), ["'gpt2' is not supported", "marian"]),
        (lambda copy: (copy / "source.spm").write_bytes(b"no model"), ["broken4", "tokenizer"]),
        (lambda copy: edit_json(copy / "config.json", decoder_layers=3), ["weights lack 26 tensors", "layers.2"]),
        (lambda copy: edit_json(copy / "config.json", d_model=64), ["has the shape [", "config.json asks for"]),
    ):
        copy = tmp_path / f"broken{len(list(tmp_path.glob('broken*')))}"
        shutil.copytree(folder, copy)
        spoil(copy)
        fails(1, words, "translate", "--model", copy, "--method", "greedy", input="a\n")


def test_no_model_at_all(fails, monkeypatch, tmp_path):
    monkeypatch.setattr("spec2seq.options.__file__", str(tmp_path / "site-packages" / "spec2seq" / "options.py"))
    fails(2, ["no model", "--model"], "translate", input="a\n")


def test_options_that_would_do_nothing(fails, folder):
    model = ("translate", "--model", folder)
    fails(2, ["--trace", "--json"], *model, "--trace", input="a\n")
    fails(2, ["--num-beams does nothing with method assisted (the default here)", "beam"], *model, "--num-beams", 3)
    fails(2, ["--drafter does nothing with method greedy"], *model, "--method", "greedy", "--drafter", "x")


def test_unknown_flags_commands_and_missing_arguments(fails):
    fails(2, ["--num-baems", "--num-beams"], "translate", "--num-baems", 3)
    fails(2, ["translat"], "translat")
    fails(2, ["FILE"], "verify-lossless")
    fails(2, ["recipe.yaml", "no such file"], "train", "recipe.yaml")


@pytest.mark.parametrize(
    ("line", "words"),
    [("{", ["not JSON"]), ("[1]", ["list instead of an object"]), ('{"a": 1}', ["no field 'text'", "found: a"]),
     ('{"text": 5}', ["field 'text' is 5", "a text"]), ('{"text": null}', ["field 'text' is null"]), ("", ["empty"]),
     ('{"text": "a", "tokens": []}', ["'tokens' is there already"]), ('{"text": "\\ud800"}', ["field 'text'"]),
     ("[" * 100_000, ["not JSON"])],
)  # fmt: skip
def test_bad_jsonl_names_its_line(fails, folder, tmp_path, line, words):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"text": LINES[0]}) + "\n" + line + "\n" + json.dumps({"text": LINES[1]}) + "\n")
    fails(1, ["in.jsonl: line 2", *words], "generate", path, "--model", folder, "--method", "greedy")


def test_output_that_cannot_be_written(fails, folder, lines, tmp_path):
    fails(2, ["--output", "absent"], "translate", lines, "--model", folder, "--output", tmp_path / "absent" / "x")
    fails(2, ["--output", "folder"], "translate", lines, "--model", folder, "--output", tmp_path)


def test_verify_lossless_of_an_empty_file(fails, folder, tmp_path):
    path = tmp_path / "empty.txt"
    path.write_text("\n\n")
    fails(1, ["empty.txt", "no lines"], "verify-lossless", path, "--model", folder)


def test_train_and_demo_name_what_is_missing(fails, tmp_path):
    fails(2, ["absent.yaml", "no such file"], "train", tmp_path / "absent.yaml", "--out", tmp_path / "run")
