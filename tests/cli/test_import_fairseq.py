"""`spec2seq import fairseq`: a folder that the other commands take."""

from golden_specdec import FOLDER, SEED11

REFERENCE = FOLDER / SEED11
DICTIONARY = REFERENCE / "dict.en.txt"


def test_a_pair_is_imported_and_translates(run, tmp_path):
    out = tmp_path / "pair"
    result = run("import", "fairseq", REFERENCE / "verifier.pt", out, "--dict", DICTIONARY,
                 "--drafter", REFERENCE / "drafter.pt")  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, f"{out}\n")
    assert (out / "drafter" / "model.safetensors").is_file()
    found = run("translate", "--model", out, "--method", "greedy", input="light teacher 🙂 city .\n")
    assert found.stdout == "licht unvolk 🙂 stadt .\n"


def test_errors_are_one_line(fails, tmp_path):
    verifier, out = REFERENCE / "verifier.pt", tmp_path / "out"
    fails(1, ["absent.pt", "no such file"], "import", "fairseq", "absent.pt", out, "--dict", DICTIONARY)
    fails(1, [str(tmp_path), "exists already"], "import", "fairseq", verifier, tmp_path, "--dict", DICTIONARY)
    fails(1, ["no decoder.copy_attn"], "import", "fairseq", verifier, out, "--dict", DICTIONARY, "--drafter", verifier)
    fails(2, ["--dict"], "import", "fairseq", verifier, out)
    assert not out.exists()
