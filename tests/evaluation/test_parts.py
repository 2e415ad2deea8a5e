import json
from pathlib import Path

import pytest
from evaluation.local import Local
from evaluation.tiny_folder import models

from spec2seq.errors import UsageError
from spec2seq.evaluation import parts

COMMITTED = Path(__file__).resolve().parents[2] / "docs/results"


def test_passes_of_both_engines_are_measured_for_both_sizes(local_workers, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parts, "CASES", [("spec2seq", "int8", 1), ("ctranslate2", "int8", 1)])
    monkeypatch.setattr(parts, "Worker", Local)
    monkeypatch.setattr(parts, "BASE", {"decoder_ffn_dim": 48})
    parts.main(["--models", str(models()), "--out", str(tmp_path), "--rounds", "2"])
    assert capsys.readouterr().out.split() == [str(tmp_path / "parts.json"), str(tmp_path / "parts.md")]
    found = json.loads((tmp_path / "parts.json").read_text(encoding="utf-8"))
    assert list(found["models"]) == ["models/ende", "Transformer-base"]
    for rows in found["models"].values():
        ours, theirs = rows
        assert ours["first_ms"] > 0 and all(ours["pass_ms"][str(n)] > 0 for n in parts.LENGTHS)
        assert theirs["pass_ms"].keys() == {"1"}
    written = (tmp_path / "parts.md").read_text(encoding="utf-8")
    assert "| CTranslate2 |" in written and "| cpu |" in written and str(tmp_path) not in json.dumps(found)


def test_the_committed_page_is_made_of_the_committed_results():
    results = json.loads((COMMITTED / "parts.json").read_text(encoding="utf-8"))
    assert (COMMITTED / "parts.md").read_text(encoding="utf-8") == parts.page(results)


def test_a_wrong_number_of_rounds_is_named():
    with pytest.raises(UsageError, match="rounds is 0"):
        parts.main(["--rounds", "0"])
