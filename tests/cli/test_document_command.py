"""translate and generate of long texts, and of gzipped files."""

import gzip
import json
import zlib

import pytest
from cli.folder import LINES

from spec2seq import Seq2Seq, Spec2SeqError, io
from spec2seq.documents import pieces

GREEDY = ("--method", "greedy")


@pytest.fixture(scope="module")
def translated(folder):
    """What the model writes for a text that stands alone."""
    model = Seq2Seq.from_pretrained(folder)
    return lambda text: " ".join(model.generate([text]).texts[0].splitlines())


def test_each_sentence_is_translated_for_itself(run, folder, translated):
    result = run("translate", "--model", folder, *GREEDY, "--document", "sentences",
                 input=f"{LINES[0]} {LINES[2]}  {LINES[3]}\n\n{LINES[1]}\n")  # fmt: skip
    first = f"{translated(LINES[0])} {translated(LINES[2])}  {translated(LINES[3])}"
    assert result.stdout == f"{first}\n\n{translated(LINES[1])}\n" and result.exit_code == 0


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_text_longer_than_the_model_goes_through(run, folder, translated, batch_size, fails, tmp_path):
    long, file = " ".join(LINES * 3), tmp_path / "long.txt"
    file.write_text(f"{LINES[4]}\n{long}\n{LINES[5]}\n")
    fails(1, ["line 2 has", "allows 64"], "translate", file, "--model", folder, *GREEDY)
    model = Seq2Seq.from_pretrained(folder)
    for window in (None, 50):
        parts = pieces(long, model, "windows", window)
        assert len(parts) > 3 and any(". " in part.text for part in parts)
        middle = "".join(part.between + translated(part.text) for part in parts)
        flags = ("--document", "windows", *(("--window", window) if window else ()))
        result = run("translate", file, "--model", folder, *GREEDY, *flags, "--batch-size", batch_size)
        assert result.stdout.split("\n") == [translated(LINES[4]), middle, translated(LINES[5]), ""]


def test_json_adds_the_pieces_up(run, folder):
    text = {"id": 3, "text": f"{LINES[0]}\n\n{LINES[2]} {LINES[3]}"}
    (row,) = map(json.loads, run(
        "generate", "--model", folder, *GREEDY, "--document", "sentences", "--trace", input=json.dumps(text) + "\n",
    ).stdout.splitlines())  # fmt: skip
    model = Seq2Seq.from_pretrained(folder)
    found = [model.generate([line]).rows[0] for line in (LINES[0], LINES[2], LINES[3])]
    assert row["output"] == f"{found[0].text}\n\n{found[1].text} {found[2].text}"
    assert row["tokens"] == [token for one in found for token in one.tokens] and row["id"] == 3
    assert len(row["trace"]) == len(row["tokens"]) == row["stats"]["new_tokens"]


def test_flags_that_do_not_go_together(fails, folder):
    model = ("translate", "--model", folder)
    fails(2, ["--window does nothing without --document"], *model, "--window", 30, input="a\n")
    fails(2, ["--document is 'pages'", "sentences, windows"], *model, "--document", "pages", input="a\n")
    fails(2, ["--n-best does nothing with --document"], *model, "--method", "beam", "--n-best", 2, "--document",
          "windows", input="a\n")  # fmt: skip
    fails(2, ["window is 3; allowed: from 8 to 64"], *model, "--document", "windows", "--window", 3, input="a b\n")


def test_gzip_in_and_out(run, folder, tmp_path):
    plain = run("translate", "--model", folder, *GREEDY, input="\n".join(LINES) + "\n").stdout
    source = tmp_path / "lines.txt.gz"
    source.write_bytes(gzip.compress(("\n".join(LINES) + "\n").encode()))
    for target in (tmp_path / "out.gz", tmp_path / "again.gz"):
        result = run("translate", source, "--model", folder, *GREEDY, "--output", target)
        assert result.exit_code == 0 and gzip.decompress(target.read_bytes()).decode() == plain
    assert (tmp_path / "out.gz").read_bytes() == (tmp_path / "again.gz").read_bytes()
    objects = tmp_path / "in.jsonl.gz"
    objects.write_bytes(gzip.compress(b'{"id": 1, "text": "%s"}\n' % LINES[0].encode()))
    run("generate", objects, "--model", folder, *GREEDY, "--output", tmp_path / "out.jsonl.gz")
    (row,) = map(json.loads, gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()).splitlines())
    assert row["id"] == 1 and row["output"] == plain.split("\n")[0]
    assert not list(tmp_path.glob("*.part"))


def test_an_interrupted_gzip_has_the_finished_lines(tmp_path):
    """Each line can be read when it is written, also where nothing could close the file."""
    target, part = tmp_path / "out.txt.gz", tmp_path / "out.txt.gz.part"
    said = pytest.raises(KeyboardInterrupt, match="the finished lines are in .*out.txt.gz.part")
    with said, io.writer(target) as write:
        write("eins")
        assert zlib.decompressobj(wbits=31).decompress(part.read_bytes()) == b"eins\n"
        write("zwei")
        assert zlib.decompressobj(wbits=31).decompress(part.read_bytes()) == b"eins\nzwei\n"
        raise KeyboardInterrupt
    assert gzip.decompress(part.read_bytes()) == b"eins\nzwei\n" and not target.exists()
    with pytest.raises(Spec2SeqError), io.writer(target) as write:
        write("drei")
        raise Spec2SeqError("a bad line")
    assert not part.exists() and not target.exists()
