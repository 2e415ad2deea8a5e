"""A little model that scores and proposes some tokens alone."""

import json
import shutil

import pytest
import tiny
import torch
from cli.folder import LINES, make_folder

from spec2seq import Assisted, BiLD, OfficialBiLD, Sample, Seq2Seq, Spec2SeqError, UsageError
from spec2seq.evaluation.lossless import compare_with_greedy
from spec2seq.models.loading import SHORTLIST_FILE
from spec2seq.training.shortlist import frequent, write_shortlist

CAP = 14


def pair(family: str) -> tuple[Seq2Seq, Seq2Seq]:
    """A model and a little one that often agrees with it."""
    return tiny.seq2seq(family), tiny.noisy_copy(tiny.seq2seq(family), 0.02)


def written(model: Seq2Seq, sources: list) -> list[int]:
    """What the model writes for these sources, the most frequent first."""
    return frequent(model.generate(sources, max_new_tokens=CAP).sequences, 1.0)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_assisted_decoding_stays_lossless(family, batch_size):
    model, little = pair(family)
    sources = tiny.sources(model, 9, 14)
    chosen = written(model, sources)[::2]
    drafter = little.drafter(chosen)
    done = model.generate(sources, Assisted(drafter, 3), max_new_tokens=CAP, batch_size=batch_size, trace=True)
    assert done.sequences == model.generate(sources, max_new_tokens=CAP).sequences
    drafted = {token for row in done.rows for token, writer in zip(row.tokens, row.trace, strict=True) if writer == "d"}
    assert drafted and drafted <= {*chosen, model.config.eos_token_id}
    whole = model.generate(sources, Assisted(little.drafter(), 3), max_new_tokens=CAP, batch_size=batch_size).stats
    assert 0 < done.stats.accepted < whole.accepted


def test_every_token_in_the_list_is_none(family):
    model, little = pair(family)
    sources, everything = tiny.sources(model, 9, 14), range(model.model.architecture.vocabulary)
    for make in (lambda one: Assisted(one, 3, 0.2), lambda one: BiLD(one, 0.3, 2.0), lambda one: Sample(drafter=one)):
        a, b = (model.generate(sources, make(little.drafter(which)), max_new_tokens=CAP, trace=True)
                for which in ((), everything))  # fmt: skip
        assert a.sequences == b.sequences and [row.trace for row in a.rows] == [row.trace for row in b.rows]


def test_probabilities_are_among_the_scored_tokens():
    model = tiny.seq2seq("bart")
    whole, chosen = model.drafter(), [3, 9, 20, 41]
    some = whole.scoring(chosen)
    places = sorted({*chosen, model.config.eos_token_id})
    assert some.shortlist.tolist() == places and some.whole is whole.model
    states = torch.randn(5, model.model.architecture.width, dtype=model.model.dtype)
    torch.testing.assert_close(some.model.head(states), whole.model.head(states)[:, places])
    assert whole.scoring(chosen).scoring(()).model is whole.model  # and back
    assert some.scoring([7]).shortlist.tolist() == sorted({7, model.config.eos_token_id})


def test_sampling_stays_exact_where_the_drafter_never_proposes_what_is_likely():
    """Its distribution is 0 there; 4,000 draws of one token against the model's own probabilities."""
    model = tiny.seq2seq("marian")
    (source,) = tiny.sources(model, 1, 3)
    first = model.generate([source], max_new_tokens=1).sequences[0][0]
    others = [token for token in range(10, 40) if token != first]
    sources, found = [source] * 4_000, []
    for drafter in (None, tiny.noisy_copy(model, 0.02).drafter(others)):
        done = model.generate(sources, Sample(drafter=drafter, seed=3), max_new_tokens=2, batch_size=500)
        found.append(torch.bincount(torch.tensor([row[0] for row in done.sequences]), minlength=64) / 4_000)
    assert found[1][first] > 0 and (found[0] - found[1]).abs().max() < 0.04


def test_the_original_knows_none():
    model, little = pair("t5")
    sources = tiny.sources(model, 5, 4)
    done = [model.generate(sources, OfficialBiLD(little.drafter(which)), max_new_tokens=CAP).sequences
            for which in ((), [5, 6])]  # fmt: skip
    assert done[0] == done[1]


def test_an_early_exit_may_have_one(family):
    model = tiny.seq2seq(family)
    sources = tiny.sources(model, 5, 4)
    drafter = model.early_exit(1).scoring(written(model, sources)[:20])
    done = model.generate(sources, Assisted(drafter, 3), max_new_tokens=CAP)
    assert done.sequences == model.generate(sources, max_new_tokens=CAP).sequences and done.stats.drafted


@pytest.mark.parametrize("chosen", [[-1, 5], [64]])
def test_tokens_out_of_range(chosen):
    with pytest.raises(UsageError, match="allowed: 0 to 63"):
        tiny.seq2seq("bart").drafter(chosen)


def test_the_most_frequent_tokens_that_cover_a_share():
    outputs = [[5] * 90, [6] * 7 + [7] * 2, [8]]
    assert frequent(outputs, 0.9) == [5] and frequent(outputs) == [5, 6]
    assert frequent(outputs, 0.98) == [5, 6, 7] and frequent(outputs, 1.0) == [5, 6, 7, 8]
    assert frequent([[5, 6, 7]]) == [5, 6, 7] and frequent([]) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("shortlist") / "tiny")


@pytest.fixture
def outputs(folder, tmp_path):
    """What the model of the folder writes, as `spec2seq distill` puts it down."""
    path, rows = tmp_path / "outputs.jsonl", Seq2Seq.from_pretrained(folder).generate(LINES).rows
    path.write_text(
        "".join(json.dumps({"source": "s", "target": row.text, "tokens": row.tokens}) + "\n" for row in rows)
    )
    return path


def test_a_folder_with_a_shortlist(folder, outputs, tmp_path):
    little = tmp_path / "little"
    shutil.copytree(folder / "little", little)
    assert Seq2Seq.from_pretrained(little).drafter().shortlist is None
    chosen, vocabulary = write_shortlist(little, outputs, 0.9)
    assert 0 < len(chosen) < vocabulary and json.loads((little / SHORTLIST_FILE).read_text()) == chosen
    found = Seq2Seq.from_pretrained(little)
    assert {*chosen} <= {*found.drafter().shortlist.tolist()} and found.drafter(()).shortlist is None
    found.save_pretrained(tmp_path / "copy")
    assert Seq2Seq.from_pretrained(tmp_path / "copy").shortlist == chosen
    model = Seq2Seq.from_pretrained(folder)
    ids = [model.encode_text(line) for line in LINES]
    report = compare_with_greedy(model, ids, Assisted(found.drafter(), 3))
    assert report.passed and report.rows == len(LINES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"source": "s", "target": "t"}\n', "line 1: field 'tokens' is missing or no list of token ids"),
        ('{"source": "s", "target": "t", "tokens": ["a"]}\n', "line 1: field 'tokens'"),
        ('{"source": "s", "target": "t", "tokens": [9999]}\n', "token 9999"),
        ("", "no tokens; needed: what the verifier of this little model wrote"),
    ],
)
def test_outputs_that_are_none(folder, tmp_path, content, message):
    path = tmp_path / "outputs.jsonl"
    path.write_text(content)
    with pytest.raises(Spec2SeqError, match=message):
        write_shortlist(folder / "little", path)
    assert not (folder / "little" / SHORTLIST_FILE).exists()


def test_wrong_files_and_shares(folder, outputs, tmp_path):
    with pytest.raises(UsageError, match="covered is 0.2; allowed: from 0.5 to 1.0"):
        write_shortlist(folder / "little", outputs, 0.2)
    with pytest.raises(Spec2SeqError, match="no model here"):
        write_shortlist(tmp_path, outputs)
    little = tmp_path / "little"
    shutil.copytree(folder / "little", little)
    (little / SHORTLIST_FILE).write_text('{"a": 1}')
    with pytest.raises(Spec2SeqError, match="shortlist.json is no list of token ids"):
        Seq2Seq.from_pretrained(little)
