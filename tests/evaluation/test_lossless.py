"""What lossless means, measured: divergences are found, placed, weighed and told apart from rounding."""

import copy
import json
import shutil

import pytest
import tiny
import torch

from spec2seq import Assisted, BiLD, Exact, Lookup, Sample, Seq2Seq, Spec2SeqError, TopBeta, UsageError
from spec2seq.decoding.stats import Stats
from spec2seq.evaluation import lossless, verify
from spec2seq.evaluation.lossless import (
    Divergence,
    LosslessReport,
    compare_with_greedy,
    describe,
    greedy_outputs,
    next_logits,
    require_lossless,
)


@pytest.fixture(scope="module")
def model() -> Seq2Seq:
    return tiny.seq2seq("marian")


@pytest.fixture(scope="module")
def sources(model) -> list[list[int]]:
    return tiny.sources(model, 8)


@pytest.fixture(scope="module")
def greedy(model, sources) -> list[list[int]]:
    return greedy_outputs(model, sources, max_new_tokens=10)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_lossless_methods_have_no_divergence(model, sources, greedy, batch_size):
    little = tiny.noisy_copy(model, 0.05).drafter()
    for method in (Assisted(little, 4), Assisted(little, 4, 0.3), Lookup(3), None):
        report = compare_with_greedy(
            model, sources, method, greedy=greedy, batch_size=batch_size, max_new_tokens=10
        )  # fmt: skip
        assert report.passed and not report.divergences
        assert (report.rows, report.tokens) == (len(sources), sum(map(len, greedy)))
        assert report.stats.new_tokens == report.tokens


def test_divergences_are_placed_and_weighed(model, sources, greedy):
    lossy = Assisted(tiny.noisy_copy(model, 0.5).drafter(), 4, acceptance=TopBeta(40, 1e9))
    rows = [row.tokens for row in model.stream(sources, lossy, max_new_tokens=10, batch_size=1)]
    numbers = [10 * number for number in range(len(sources))]
    seen = []
    report = compare_with_greedy(
        model, sources, lossy, numbers=numbers, max_new_tokens=10, progress=lambda: seen.append(1)
    )  # fmt: skip
    assert len(seen) == 2 * len(sources)
    assert report.divergences and not report.passed and report.bugs == len(report.divergences)
    assert [item.line // 10 for item in report.divergences] == [
        index for index, (a, b) in enumerate(zip(greedy, rows, strict=True)) if a != b
    ]
    for item in report.divergences:
        index = item.line // 10
        assert greedy[index][: item.position] == rows[index][: item.position]
        assert (greedy[index][item.position], rows[index][item.position]) == (item.expected, item.actual)
        scores = next_logits(model, sources[index], greedy[index][: item.position])
        assert scores.argmax() == item.expected and item.below_best == 0
        assert (
            item.gap == pytest.approx(float(scores[item.expected] - scores[item.actual]))
            and item.gap > lossless.TIES[model.model.dtype]
        )


def test_logits_after_a_prefix_are_transformers(family):
    theirs = tiny.transformers_model(family)
    source, prefix = [5, 9, 12, theirs.config.eos_token_id], [7, 3, 20]
    decoder = torch.tensor([[theirs.config.decoder_start_token_id, *prefix]])
    expected = theirs(input_ids=torch.tensor([source]), decoder_input_ids=decoder, use_cache=False).logits[0, -1]
    found = next_logits(Seq2Seq.from_transformers(theirs), source, prefix)
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-9)


def test_outputs_behind_prompts_are_compared_there(sources):
    model, prompts = tiny.seq2seq("marian"), [[9, 4], [7], [], [3, 3, 3]] * 3
    given = {"prompts": prompts[: len(sources)], "max_new_tokens": 10}
    greedy = greedy_outputs(model, sources, **given)
    assert greedy == model.generate(sources, **given).sequences != greedy_outputs(model, sources, 10)
    assert compare_with_greedy(model, sources, Lookup(3), batch_size=3, **given).passed
    other = [[*row[:1], 5, *row[2:]] for row in greedy]
    report = compare_with_greedy(model, sources, Lookup(3), greedy=other, **given)
    for item in report.divergences:
        prompt, prefix = given["prompts"][item.line - 1], greedy[item.line - 1][:1]
        assert next_logits(model, sources[item.line - 1], prefix, 10, prompt).argmax() == item.actual
    assert len(report.divergences) > 3


def test_logits_are_processed_as_in_decoding():
    theirs = copy.deepcopy(tiny.transformers_model("marian"))
    theirs.generation_config.suppress_tokens = [11]
    scores = next_logits(Seq2Seq.from_transformers(theirs), [5, 0], [])
    assert scores[11] == -torch.inf and scores[10] > -torch.inf


def test_equal_logits_are_a_tie_only_near_the_best(sources):
    model = copy.deepcopy(tiny.seq2seq("marian"))  # it is shared
    source = sources[0]
    scores = next_logits(model, source, [])
    best, worst = int(scores.argmax()), int(scores.argmin())
    twins = {best: 1, worst: 2}
    head = model.model.head
    head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)  # no longer the table of the embeddings
    for token, twin in twins.items():
        head.weight[twin] = head.weight[token]
        if head.bias is not None:
            head.bias[twin] = head.bias[token]
    for token, tie in ((best, True), (worst, False)):
        found = lossless._divergence(model, 1, source, (), [token], [twins[token]], None, 1e-4)
        assert found.gap == pytest.approx(0, abs=1e-6) and found.tie is tie
        assert lossless._divergence(model, 1, source, (), [token], [twins[token]], None, 0.0).tie is False


def test_an_output_that_ends_too_soon_is_a_bug(model, sources, greedy):
    row = max(range(len(greedy)), key=lambda index: len(greedy[index]))
    short = [*greedy[row][:-1]]
    report = compare_with_greedy(model, [sources[row]], Lookup(2), greedy=[short], max_new_tokens=10)
    (item,) = report.divergences
    assert (item.position, item.expected, item.tie, report.bugs) == (len(short), None, False, 1)
    assert report.as_dict()["divergences"][0]["gap"] is None
    json.dumps(report.as_dict(), allow_nan=False)
    assert "greedy nothing" in describe(report, "lookup") and "BUG" in describe(report, "lookup")


def report_with(rows: int, ties: int) -> LosslessReport:
    item = Divergence(3, 2, 5, 6, "a", None, 2e-5, 0.0, True)
    return LosslessReport(rows, 100, [item] * ties, Stats())


@pytest.mark.parametrize(
    ("rows", "ties", "passed"),
    [(5, 1, True), (500, 1, True), (500, 2, False), (501, 2, True), (2000, 4, True), (2000, 5, False)],
)
def test_one_tie_in_500_lines_is_allowed(rows, ties, passed):
    assert report_with(rows, ties).passed is passed


def test_the_report_for_people():
    text = describe(report_with(10, 1), "assisted")
    assert text.splitlines() == [
        "line 3: position 2: greedy 'a' (5), assisted 6, logit gap 2e-05: numerical tie",
        "passed: 10 lines, 100 tokens, 1 numerical ties (allowed: 1), 0 bugs; 0.00 tokens per verifier call",
    ]
    assert describe(report_with(10, 1), "bild", lossless=False).endswith(
        "0 lines differ; 0.00 tokens per verifier call"
    )


def test_lossy_methods_are_refused_by_name(model):
    little = model.drafter()
    for method in (BiLD(little), Sample(), Assisted(little, acceptance=TopBeta(3))):
        with pytest.raises(UsageError, match="method x"):
            require_lossless(method, "x")
    for method in (Assisted(little), Lookup(acceptance=Exact()), Assisted(little, acceptance=TopBeta(1))):
        require_lossless(method, "x")


def test_nothing_to_compare_and_a_wrong_tie(model):
    with pytest.raises(Spec2SeqError, match="no lines"):
        compare_with_greedy(model, [], Lookup())
    with pytest.raises(UsageError, match="tie is -1"):
        compare_with_greedy(model, [[0]], Lookup(), tie=-1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tiny model folder and a TSV for `make verify`."""
    from cli.folder import LINES, make_folder

    place = tmp_path_factory.mktemp("verify")
    table = place / "test.tsv"
    table.write_text("".join(f"{line}\tetwas\tmanual\n" for line in [*LINES, "word " * 100]))
    return make_folder(place / "tiny"), table


def test_make_verify(data, tmp_path, capsys, monkeypatch):
    folder, table = data
    out = tmp_path / "results" / "verify.json"
    arguments = ["--model", str(folder), "--data", str(table), "--out", str(out)]
    tiny.cached_drafter(Seq2Seq.from_pretrained(folder)).model.save_pretrained(folder / "drafter")
    try:
        verify.main(arguments)
    finally:
        shutil.rmtree(folder / "drafter")
    printed = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert printed.startswith("9 lines of test.tsv\n(fewer than 2000") and "passed; results in" in printed
    replays = {(one["drafter"], one["dtype"], one["batch_size"]): one for one in results["replays"]}
    names = [*((name, size) for name in verify.DRAFTERS for size in (1, 16)), ("greedy", 16)]
    assert set(replays) == {(name, dtype, size) for name, size in names for dtype in ("float32", "int8")}
    assert all(replay["rows"] == 9 and replay["passed"] for replay in results["replays"])
    assert all(replays[name, "float32", 1]["stats"]["drafted"] > 0 for name in ("little, fixed", "blocks, fixed"))
    assert results["manifest"]["dtype"] == "float32 and int8" and results["manifest"]["versions"]["torch"]
    assert str(folder) not in out.read_text()

    lossy = {"method": "assisted", "num_assistant_tokens": 5, "beta": 50, "tau": 100.0}
    monkeypatch.setattr(verify, "DRAFTERS", {"lossy": lossy})
    with pytest.raises(SystemExit, match="1"):
        verify.main([*arguments, "--limit", "2"])
    assert json.loads(out.read_text())["passed"] is False and "BUG" in capsys.readouterr().out


def test_make_verify_names_bad_input(data, tmp_path):
    folder, table = data
    for arguments, code, words in (
        (["--model", str(folder), "--data", str(tmp_path / "absent.tsv")], 2, "absent.tsv"),
        (["--model", str(folder), "--data", str(table), "--limit", "0"], 2, "--limit is 0"),
        (["--model", str(tmp_path), "--data", str(table)], 1, "config.json"),
    ):
        with pytest.raises(Spec2SeqError, match=words) as error:
            verify.main([*arguments, "--out", str(tmp_path / "x.json")])
        assert error.value.exit_code == code
    assert not (tmp_path / "x.json").exists()
