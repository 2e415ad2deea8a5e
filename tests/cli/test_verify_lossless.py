"""verify-lossless on a tiny model."""

import json

import pytest

from spec2seq.evaluation import lossless


@pytest.mark.parametrize("flags", [("--num-assistant-tokens", 3, "--batch-size", 4), ("--method", "greedy"),
                                   ("--method", "lookup", "--num-lookup-tokens", 3)])  # fmt: skip
def test_lossless_methods_pass(run, folder, lines, flags):
    result = run("verify-lossless", lines, "--model", folder, *flags)
    assert result.exit_code == 0
    assert result.stdout.startswith("passed: 5 lines, ") and "0 bugs" in result.stdout


def test_json_and_limit(run, folder, lines):
    result = run("verify-lossless", lines, "--model", folder, "--json", "--limit", 2, "--num-assistant-tokens", 2)
    report = json.loads(result.stdout)
    assert (report["method"], report["rows"], report["passed"], report["divergences"]) == ("assisted", 2, True, [])
    assert report["stats"]["drafted"] > 0


LOSSY = ("--num-assistant-tokens", 4, "--beta", 50, "--tau", 100)


def test_a_lossy_method_is_refused_or_reported(run, fails, folder, lines):
    fails(2, ["assisted", "lossy", "--report-only"], "verify-lossless", lines, "--model", folder, *LOSSY)
    result = run("verify-lossless", lines, "--model", folder, *LOSSY, "--report-only")
    assert result.exit_code == 0
    assert "logit gap" in result.stdout and "lines differ" in result.stdout and "BUG" not in result.stdout


def test_a_bug_is_found_and_named_with_its_line(run, folder, lines, monkeypatch):
    """A method that says it is lossless and is not."""
    monkeypatch.setattr("spec2seq.decoding.acceptance.TopBeta.lossless", True)
    result = run("verify-lossless", lines, "--model", folder, *LOSSY)
    assert result.exit_code == 1
    assert "BUG" in result.stdout and "FAILED" in result.stdout
    first = result.stdout.splitlines()[0]
    assert first.startswith(("line 1: ", "line 3: ")) and "position" in first and "greedy '" in first
    result = run("verify-lossless", lines, "--model", folder, *LOSSY, "--tie", "1e9")
    assert "numerical tie" in result.stdout and result.exit_code == (result.stdout.count(": numerical tie") > 1)


def test_the_default_tie_is_the_librarys():
    import inspect

    from spec2seq.cli.decode import verify_lossless

    assert inspect.signature(verify_lossless).parameters["tie"].default is None and min(lossless.TIES.values()) == 1e-4
