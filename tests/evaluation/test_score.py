"""Scores: compound BLEU as the original's scripts print it, the others as their packages do, and the bootstrap."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.evaluation import compound, rouge
from spec2seq.evaluation.bootstrap import paired_bootstrap
from spec2seq.evaluation.scoring import fairseq_references, make_metric, score_files

GOLDEN = json.loads(
    (Path(__file__).parent.parent / "golden/compound-bleu/compound_bleu.json").read_text(encoding="utf-8")
)
PAIRS = GOLDEN["pairs"]
WANTED = ["Der Rechner ist voll.", "Die Datei wird gelöscht.", "Das Paket ist alt.", "Ein Fehler trat auf."]
MADE = ["Der Rechner ist voll.", "Die Datei ist gelöscht.", "Das Paket war alt.", "Ein Fehler trat hier auf."]
WORSE = ["Rechner voll.", "Datei weg.", "Ein altes Paket.", "Ein Fehler trat hier auf."]


def fairseq_line(total: np.ndarray) -> str:
    """The line that fairseq-score prints of these counts."""
    matches, totals, (made, wanted) = total[:4], total[4:8], total[8:]
    precisions = "/".join(f"{100 * m / t if t else 0:.1f}" for m, t in zip(matches, totals, strict=True))
    brevity = min(1.0, np.exp(1 - wanted / made))
    score = compound.bleu(total).item()
    return (
        f"BLEU4 = {score:.2f}, {precisions} (BP={brevity:.3f}, ratio={made / wanted:.3f}, syslen={made}, "
        f"reflen={wanted})"
    )


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: str(pair["index"]))
def test_compounds_are_split_as_perl_splits_them(pair):
    assert compound.split_compounds(pair["hyp"]) == pair["hyp_split"]
    assert compound.split_compounds(pair["ref"]) == pair["ref_split"]


def test_hyphens_are_found_byte_by_byte():
    assert compound.split_compounds("1-2-3 ß-ß-ß") == "1 ##AT##-##AT## 2-3 ß ##AT##-##AT## ß ##AT##-##AT## ß"


@pytest.mark.parametrize("scores", GOLDEN["scores"], ids=lambda s: f"{s['set']}-{s['compound_split']}")
def test_compound_bleu_is_what_fairseq_score_prints(scores, monkeypatch):
    if not scores["compound_split"]:
        monkeypatch.setattr(compound, "split_compounds", lambda line: line)
    hyps, refs = ([PAIRS[i][side] for i in scores["indices"]] for side in ("hyp", "ref"))
    assert fairseq_line(compound.statistics(hyps, refs).sum(0)) == scores["fairseq_score"]


def test_no_four_gram_in_common_is_zero():
    case = GOLDEN["no_4gram_match"]
    assert fairseq_line(compound.statistics(case["hyp"], case["ref"]).sum(0)) == case["fairseq_score"]


def test_an_empty_line_is_one_end_token_and_special_tokens_are_trimmed():
    assert compound.statistics([""], [""])[0].tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 1, 1]
    assert compound.statistics(["<pad> a b </s>"], ["a b"])[0].tolist() == [2, 1, 0, 0, 2, 1, 0, 0, 2, 2]


def test_references_of_fairseq_generate(tmp_path):
    case, path = GOLDEN["extract_from_generate_output"], tmp_path / "generate.out"
    path.write_text("\n".join(case["generate_lines"]) + "\n", encoding="utf-8")
    assert [compound.split_compounds(line) for line in fairseq_references(path)] == case["references_split"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("H-0\t-1\ta\n", "no line begins with T-"), ("T-0\ta\nT-0\tb\n", "line 2: T-0 comes twice"),
     ("T-x\ta\n", "line 1: .* is no reference"), ("T-0 a\n", "is no reference")],
)  # fmt: skip
def test_a_file_that_is_not_fairseq_s_is_named(tmp_path, text, message):
    path = tmp_path / "generate.out"
    path.write_text(text)
    with pytest.raises(Spec2SeqError, match=message):
        fairseq_references(path)


@pytest.mark.parametrize(("name", "package"), [("bleu", sacrebleu.BLEU), ("chrf", sacrebleu.CHRF)])
def test_bleu_and_chrf_are_sacrebleu_s(name, package):
    metric, theirs = make_metric(name), package()
    total = metric.statistics(MADE, WANTED).sum(0)
    assert metric.value(total).item() == theirs.corpus_score(MADE, [WANTED]).score
    assert metric.signature() == str(theirs.get_signature())
    assert "tok:none" in _signature(make_metric("bleu", tokenized=True))


def _signature(metric) -> str:
    metric.statistics(MADE, WANTED)
    return metric.signature()


def test_rouge_is_the_mean_over_lines_and_lsum_needs_sentences():
    made = ["the cache is full<n>remove the file", "a signal ended"]
    wanted = ["remove the files<n>the cache is full", "signals end a program"]
    got = rouge.mean(rouge.statistics(made, wanted).sum(0))
    scorer = RougeScorer(rouge.VARIANTS, use_stemmer=True)
    lines = [scorer.score(w.replace("<n>", "\n"), m.replace("<n>", "\n")) for m, w in zip(made, wanted, strict=True)]
    expected = [100 * sum(line[name].fmeasure for line in lines) / 2 for name in rouge.VARIANTS]
    assert got.tolist() == pytest.approx(expected)
    single = rouge.mean(rouge.statistics(*([t.replace("<n>", " ") for t in side] for side in (made, wanted))).sum(0))
    assert got[3] > single[3] == pytest.approx(single[2])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(Spec2SeqError, match=r"rouge-score.*spec2seq\[eval\]"):
        rouge.statistics(["a"], ["a"])


def test_bootstrap_finds_the_differences_that_are_there():
    draw = np.random.default_rng(0)
    rows = np.stack([draw.normal(50, 10, 300), np.ones(300)], axis=1)
    mean = lambda total: np.array([total[0] / total[1]])  # noqa: E731
    (same,) = paired_bootstrap(rows, rows, mean, 200, 1)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    noise = rows + np.stack([draw.normal(0, 5, 300), np.zeros(300)], axis=1)
    (chance,) = paired_bootstrap(noise, rows, mean, 500, 1)
    assert chance.low < 0 < chance.high and chance.p_value > 0.05
    (better,) = paired_bootstrap(noise + [2, 0], rows, mean, 500, 1)
    assert 0 < better.low < better.difference < better.high and better.p_value < 0.01
    # The mean of n differences has the standard error s/√n, and 95% of a normal lie within 1.96 of it.
    error = (noise[:, 0] - rows[:, 0]).std() / 300**0.5
    assert chance.high - chance.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert paired_bootstrap(noise, rows, mean, 500, 1) == [chance] != paired_bootstrap(noise, rows, mean, 500, 2)


def test_bootstrap_scores_each_draw_as_sacrebleu_scores_its_lines():
    metric = make_metric("bleu")
    ours, theirs = metric.statistics(MADE, WANTED), metric.statistics(WORSE, WANTED)
    (found,) = paired_bootstrap(ours, theirs, metric.value, 1, 7)
    rows = np.random.default_rng(7).choice(4, size=(1, 4), replace=True)[0]
    wanted = [WANTED[row] for row in rows]
    scores = [
        sacrebleu.corpus_bleu([texts[row] for row in rows], [wanted], force=True).score for texts in (MADE, WORSE)
    ]
    assert found.low == found.high == pytest.approx(scores[0] - scores[1])


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_all_metrics_of_files_with_a_comparison(tmp_path):
    hyp, ref, other = (write(tmp_path / n, t) for n, t in (("a", MADE), ("b", WANTED), ("c", WORSE)))
    names = ["bleu", "chrf", "compound-bleu", "rouge"]
    report = score_files(hyp, ref, names, language="de", against=other, samples=50, seed=3)
    assert report["lines"] == 4 and list(report["metrics"]) == [*names[:3], *rouge.VARIANTS]
    for found in report["metrics"].values():
        assert found["difference"] == pytest.approx(found["score"] - found["against"])
        assert found["low"] <= found["difference"] + 1e-9 and (found["samples"], found["seed"]) == (50, 3)
    tokens = ["Der Rechner ist voll .", "Die Datei ist gelöscht .", "Das Paket war alt .", "Ein Fehler trat hier auf ."]
    given = score_files(
        write(tmp_path / "t", tokens), write(tmp_path / "w", [w[:-1] + " ." for w in WANTED]), ["compound-bleu"],
        tokenized=True,
    )  # fmt: skip
    assert given["metrics"]["compound-bleu"]["score"] == report["metrics"]["compound-bleu"]["score"]
    assert "moses-de" in report["metrics"]["compound-bleu"]["signature"]


def test_fields_of_jsonl(tmp_path):
    objects = [{"output": made, "summary": wanted, "tokens": []} for made, wanted in zip(MADE, WANTED, strict=True)]
    path = write(tmp_path / "x.jsonl", [json.dumps(o) for o in objects])
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    report = score_files(packed, path, ref_field="summary")
    assert report == score_files(write(tmp_path / "a", MADE), write(tmp_path / "b", WANTED))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["bleu", "meteor"]}, "--metrics is 'meteor'; allowed: bleu"),
        ({"metrics": ["compound-bleu"]}, "--language CODE to make them, or --tokenized"),
        ({"language": "de"}, "--language does nothing"),
        ({"metrics": ["chrf"], "tokenized": True}, "--tokenized does nothing"),
        ({"samples": 10}, "--samples does nothing here; it needs --against"),
        ({"seed": 1}, "--seed does nothing"),
        ({"hyp_field": "output"}, "--hyp-field does nothing"),
        ({"ref_format": "fairseq", "ref_field": "x"}, "--ref-field does nothing"),
        ({"ref_format": "xml"}, "--ref-format is 'xml'"),
        ({"against": Path("absent")}, "absent: no such file"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    hyp, ref = write(tmp_path / "a", MADE), write(tmp_path / "b", WANTED)
    with pytest.raises(UsageError, match=message):
        score_files(hyp, ref, **options)


def test_files_that_do_not_fit_are_refused(tmp_path):
    hyp, ref = write(tmp_path / "a", MADE[:3]), write(tmp_path / "b", WANTED)
    with pytest.raises(Spec2SeqError, match=r"a has 3 lines, .*b has 4"):
        score_files(hyp, ref)
    (tmp_path / "empty").touch()
    with pytest.raises(Spec2SeqError, match="no lines"):
        score_files(tmp_path / "empty", tmp_path / "empty")
