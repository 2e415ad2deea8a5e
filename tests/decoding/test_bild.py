"""BiLD: the original's results, and the identities of every policy."""

import golden_bild
import pytest
import tiny
import torch
from decoding.replay import Replay

from spec2seq import Assisted, BiLD, FixedLength, OfficialBiLD, Rollback, Sampling, Seq2Seq, Speculative, UsageError
from spec2seq.decoding import costs
from spec2seq.decoding.stats import Counts

CAP = 16
GOLDEN = golden_bild.expected()
MOST = GOLDEN["max_length"] - 1
PAIRS = [(run["fallback"], run["rollback"]) for run in GOLDEN["bild"]]


def rows(ids: list[list[int]]) -> list[list[int]]:
    return [row[1:] for row in ids]


@pytest.mark.parametrize("size", ["large", "small"])
def test_greedy_is_the_originals_and_transformers(size):
    found = golden_bild.model(size).generate(GOLDEN["inputs"], max_new_tokens=MOST, batch_size=6).sequences
    assert found == rows(GOLDEN[f"fork_greedy_{size}"]) == rows(golden_bild.expected("expected_hf")[f"greedy_{size}"])


def test_assisted_is_transformers():
    model, little = golden_bild.model("large"), golden_bild.model("small").drafter()
    found = model.generate(GOLDEN["inputs"], Assisted(little, 4), max_new_tokens=MOST, batch_size=5).sequences
    assert found == rows(golden_bild.expected("expected_hf")["assisted"])


@pytest.mark.parametrize("run", GOLDEN["bild"], ids=[f"{a}-{b}" for a, b in PAIRS])
def test_the_official_program(run):
    """Every token, and every pass: how often each model ran and what it was fed."""
    model, little = golden_bild.model("large"), golden_bild.model("small").drafter()
    method = OfficialBiLD(little, run["fallback"], run["rollback"])
    done = model.generate(GOLDEN["inputs"], method, max_new_tokens=MOST, trace=True)
    for row, line in zip(done.rows, run["lines"], strict=True):
        counts = row.counts
        assert row.tokens == line["ids"][1:] and len(row.trace) == len(row.tokens)
        assert (counts.verifier_calls, counts.verifier_tokens) == (line["large_passes"], line["large_tokens_fed"])
        assert (counts.drafter_calls, counts.drafter_tokens) == (line["small_passes"], line["small_tokens_fed"])
        assert (counts.fallbacks, counts.rollbacks) == (line["fallbacks"], line["rollbacks"])
        assert counts.handovers == line["cap_handovers"]
        assert (counts.unverified > 0) == (line["ended_by"] == "small")
    assert done.stats.rows == 24 and done.stats.verifier_passes == run["totals"]["large_passes"]


def test_the_official_program_takes_zero_for_its_defaults():
    model, little = golden_bild.model("large"), golden_bild.model("small").drafter()
    zero, default = (
        model.generate(GOLDEN["inputs"][:6], method, max_new_tokens=MOST).sequences
        for method in (OfficialBiLD(little, 0.0, 0.0), OfficialBiLD(little, 0.6, 5.0))
    )
    assert zero == default


@pytest.mark.parametrize("pair", PAIRS)
def test_an_output_ends_with_its_first_end_token(pair):
    """Where a rollback writes the end token the original goes on."""
    model, little = golden_bild.model("large"), golden_bild.model("small").drafter()
    done = model.generate(GOLDEN["inputs"], BiLD(little, *pair), max_new_tokens=MOST)
    assert all(1 not in row[:-1] for row in done.sequences)


def pair_of(family: str, seed: int = 0) -> tuple[Seq2Seq, Seq2Seq, list[list[int]]]:
    model = tiny.seq2seq(family, seed)
    return model, tiny.noisy_copy(model, 0.05), tiny.sources(model, 14, 17)


def test_a_fallback_above_every_probability_is_greedy(family):
    model, little, sources = pair_of(family)
    done = model.generate(sources, BiLD(little.drafter(), 1.0), max_new_tokens=CAP)
    assert done.sequences == model.generate(sources, max_new_tokens=CAP).sequences
    assert done.stats.drafted == 0 and done.stats.fallbacks >= done.stats.new_tokens - len(sources)


@pytest.mark.parametrize("fallback", [None, 0.0, 0.4])
@pytest.mark.parametrize(("batch_size", "cap"), [(1, 6), (5, 6), (5, None)])
def test_a_rollback_of_zero_with_the_tail_verified_is_greedy(family, fallback, batch_size, cap):
    model, little, sources = pair_of(family)
    method = BiLD(little.drafter(), fallback, 0.0, cap, verify_tail=True)
    assert method.lossless and not BiLD(little.drafter(), fallback, 0.0).lossless
    done = model.generate(sources, method, max_new_tokens=CAP, batch_size=batch_size)
    assert done.sequences == model.generate(sources, max_new_tokens=CAP).sequences
    assert done.stats.unverified == 0 and done.stats.rollbacks > 0


@pytest.mark.parametrize(("seconds", "drafts"), [(0.01, True), (9.0, False)])
def test_a_measured_cap_drafts_where_it_pays(monkeypatch, seconds, drafts):
    measured = costs.Costs({1: seconds, 10: seconds}, {0: 1.0, 10: 1.1})
    monkeypatch.setattr(costs, "of_iterations", lambda *given: measured)
    model, little, sources = pair_of("marian")
    done = model.generate(sources, BiLD(little.drafter(), 0.1, None, None), max_new_tokens=CAP, batch_size=4)
    assert bool(done.stats.drafted) == drafts
    assert (done.sequences == model.generate(sources, max_new_tokens=CAP).sequences) != drafts


VARIANTS = {
    "paper": {}, "verifier starts": {"starts": "verifier"}, "tail verified": {"verify_tail": True},
    "no rollback": {"rollback_threshold": None}, "no fallback": {"fallback_threshold": None},
    "zero": {"fallback_threshold": 0.0, "rollback_threshold": 0.0}, "cap 1": {"max_draft_tokens": 1},
    "kl": {"distance": "kl", "rollback_threshold": 0.5}, "sampling": {"sampling": Sampling(top_p=0.8, seed=3)},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("family", ["marian", "t5"])
def test_a_batch_is_its_rows_alone(family, name):
    model, little, sources = pair_of(family)
    method = BiLD(little.drafter(), **({"fallback_threshold": 0.3, "max_draft_tokens": 5} | VARIANTS[name]))
    alone, *batches = (
        model.generate(sources, method, max_new_tokens=CAP, batch_size=size, trace=True) for size in (1, 3, 14)
    )
    for batch in batches:
        assert batch.sequences == alone.sequences
        for a, b in zip(batch.rows, alone.rows, strict=True):
            assert a.trace == b.trace
            assert a.counts == b.counts
    stats = alone.stats
    assert stats.verifier_passes == stats.verifier_calls and stats.drafted == stats.accepted + stats.discarded
    assert stats.drafted > 0 and (stats.unverified == 0) == method.verify_tail


def test_who_starts(family):
    model, little, sources = pair_of(family)
    for starts, letter in (("drafter", "d"), ("verifier", "v")):
        method = BiLD(little.drafter(), None, None, 3, starts=starts)
        done = model.generate(sources, method, max_new_tokens=CAP, batch_size=4, trace=True)
        assert {row.trace[0] for row in done.rows} == {letter}


def test_zero_thresholds_are_values():
    model, little, sources = pair_of("t5")
    never = model.generate(sources, BiLD(little.drafter(), 0.0, 2.0, 4), max_new_tokens=CAP)
    off = model.generate(sources, BiLD(little.drafter(), None, 2.0, 4), max_new_tokens=CAP)
    assert never.sequences == off.sequences and never.stats.fallbacks == 0 and never.stats.handovers > 0
    strict = model.generate(sources, BiLD(little.drafter(), 0.3, 0.0), max_new_tokens=CAP).stats
    loose = model.generate(sources, BiLD(little.drafter(), 0.3, None), max_new_tokens=CAP).stats
    assert strict.rollbacks > loose.rollbacks == 0


def greedy_that_ends(model: Seq2Seq, least: int = 6) -> tuple[list[int], list[int]]:
    """A source whose output of `least` or more tokens ends by itself, and that output."""
    sources = tiny.sources(model, 60, 7)
    found = model.generate(sources, max_new_tokens=CAP, batch_size=30).sequences
    pairs = zip(sources, found, strict=True)
    return next((s, row) for s, row in pairs if row[-1] == model.config.eos_token_id and len(row) >= least)


def test_a_rollback_to_the_end_token_ends_the_row(family):
    model = tiny.seq2seq(family)
    source, greedy = greedy_that_ends(model)
    script = [*greedy[:-1], (greedy[-1] + 3) % 64, 9, 8, 7]
    drafter = Replay({tuple(source): script})
    method = Speculative(drafter, FixedLength(len(script)), Rollback(0.0), verify_tail=False)
    row = model.generate([source], method, max_new_tokens=24, trace=True).rows[0]
    assert row.tokens == greedy and row.trace == "d" * (len(greedy) - 1) + "v"
    assert (row.counts.rollbacks, row.counts.unverified) == (1, 0)


def test_a_second_violation_behind_a_guarded_one_rolls_back(family):
    """The first drafted tokens are the verifier's own and improbable; the wrong one behind them must still fall."""
    model = tiny.seq2seq(family)
    source, greedy = greedy_that_ends(model)
    script = [*greedy[:4], (greedy[4] + 1) % 64]
    threshold = 1e-6  # below the distance of every token that is not certain
    method = Speculative(Replay({tuple(source): script}), FixedLength(5), Rollback(threshold), verify_tail=False)
    row = model.generate([source], method, max_new_tokens=CAP, trace=True).rows[0]
    assert row.tokens == greedy
    assert row.trace.startswith("ddddv") and row.counts.rollbacks == 1


def test_an_end_in_a_draft_ends_the_row_without_a_pass(family):
    model = tiny.seq2seq(family)
    source, greedy = greedy_that_ends(model)
    eos = greedy[-1]
    others = [other for other in tiny.sources(model, 6, 7) if other != source]
    script = [greedy[0], (greedy[1] + 1) % 60 + 3, eos]  # wrong, and never seen by the verifier
    scripts = {tuple(source): script} | {tuple(other): [5, 6, 7, 8] for other in others}
    method = Speculative(Replay(scripts), FixedLength(3), Rollback(0.0), verify_tail=False)
    alone = model.generate([source], method, max_new_tokens=CAP, trace=True)
    assert alone.sequences == [script] and alone.rows[0].trace == "ddd"
    counts = alone.rows[0].counts
    assert (counts.verifier_calls, counts.verifier_tokens, counts.unverified) == (0, 0, 3)
    assert alone.stats.verifier_passes == 0
    together = model.generate([*others, source], method, max_new_tokens=CAP, batch_size=6, trace=True)
    assert together.rows[-1] == alone.rows[0]
    assert together.stats.verifier_passes > 0


def test_an_end_that_the_generation_config_forbids_is_verified():
    """min_new_tokens holds although drafters know nothing of it."""
    model, little, sources = pair_of("bart")
    config = model.generation_config
    longer = Seq2Seq(model.model, model.config, None, type(config)(**(config.to_dict() | {"min_new_tokens": 9})))
    method = BiLD(little.drafter(), 0.0, None, 12)
    short, long = (m.generate(sources, method, max_new_tokens=CAP, batch_size=4) for m in (model, longer))
    assert min(map(len, short.sequences)) < 9 <= min(map(len, long.sequences))
    assert long.stats.unverified > 0


def test_cached_is_uncached():
    """Each drafted token is the likeliest of a little model that reads the whole prefix anew."""
    model, little, sources = pair_of("t5")
    done = model.generate(sources, BiLD(little.drafter(), 0.3), max_new_tokens=CAP, batch_size=4, trace=True)
    fresh = model.generate(sources, BiLD(little.drafter(), 0.3), max_new_tokens=CAP, batch_size=1, trace=True)
    assert done.sequences == fresh.sequences
    start, checked = model.config.decoder_start_token_id, 0
    for source, row in zip(sources, done.rows, strict=True):
        for place in range(len(row.tokens)):
            cache = little.model.new_cache(1)
            little.model.admit(cache, 0, little.model.encode(torch.tensor([source]), torch.tensor([len(source)])))
            prefix = torch.tensor([[start, *row.tokens[:place]]])
            logits = little.model.decode_block(cache, prefix, torch.zeros(1, dtype=torch.long), place + 1, uniform=True)
            if row.trace[place] == "d":
                assert logits.logits[0, -1].argmax() == row.tokens[place]
                checked += 1
    assert checked > 20


def test_percentages_as_the_reproduction_defines_them():
    """Events for every token that a pass wrote, whether it stayed or not, but for the one that ended the row."""
    counts = Counts(new_tokens=17, discarded=4, fallbacks=3, rollbacks=2)
    assert counts.fallback_percentage == pytest.approx(100 * 3 / 20)
    assert counts.rollback_percentage == pytest.approx(100 * 2 / 20)
    assert Counts().fallback_percentage == 0.0
    model, little, sources = pair_of("marian")
    stats = model.generate(sources, BiLD(little.drafter(), 0.3), max_new_tokens=CAP).stats
    written = stats.new_tokens + stats.discarded - len(sources)
    assert stats.as_dict()["fallback_percentage"] == pytest.approx(100 * stats.fallbacks / written)


def test_a_first_token_that_nobody_drafted_teaches_nothing():
    """New rows in slots that others left were not asked; a drafter that is always right stays so."""
    model = tiny.seq2seq("marian")
    method = BiLD(model.drafter(), None, 2.0, None, starts="verifier", verify_tail=True)
    stats = model.generate(tiny.sources(model, 30), method, max_new_tokens=4, batch_size=6).stats
    learned = method.chooser(model.model, 6)
    assert stats.acceptance == 1.0
    assert learned.stood[0] == learned.tried[0] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: BiLD(d, 2.0), "fallback_threshold is 2.0; allowed: from 0.0 to 1.0"),
        (lambda d: BiLD(d, 0.5, -1.0), "rollback_threshold is -1.0; allowed: at least 0.0"),
        (lambda d: BiLD(d, max_draft_tokens=0), "max_draft_tokens is 0; allowed: at least 1"),
        (lambda d: BiLD(d, starts="large"), "starts is 'large'; allowed: drafter, verifier"),
        (lambda d: Speculative(d, FixedLength(3), Rollback(1.0, "kl")), "LittleModel gives no distributions"),
        (lambda d: OfficialBiLD(Replay({})), "Replay is no little model"),
        (lambda d: OfficialBiLD(d, max_draft_tokens=None), "max_draft_tokens is None; allowed: whole numbers"),
        (lambda d: OfficialBiLD(d, 3.0), "fallback_threshold is 3.0; allowed: from 0.0 to 1.0"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(UsageError) as error:
        make(tiny.seq2seq("t5").drafter())
    assert message in str(error.value)
