"""Speculative sampling draws from the verifier's own distribution: chi-square, 20,000 samples, fixed seeds."""

import functools
import math

import pytest
import tiny
import torch
from scipy import stats
from torch import Tensor

from spec2seq import FixedLength, NgramLookup, RejectionSampling, Sample, Speculative
from spec2seq.decoding.acceptance import Draft
from spec2seq.decoding.loop import Engine
from spec2seq.decoding.sampling import DRAFT, REPLACE, Sampling, draw, uniform

SAMPLES, VOCABULARY, WIDTH = 20_000, 12, 3
SEEDS = torch.arange(SAMPLES)
FILTERS = {
    "plain": Sampling(),
    "top_p": Sampling(top_p=0.7),
    "top_k": Sampling(top_k=4),
    "temperature": Sampling(temperature=0.5),
    "hot": Sampling(temperature=1.8),
    "all": Sampling(temperature=1.4, top_k=8, top_p=0.8),
}


def pvalue(tokens: Tensor, distribution: Tensor) -> float:
    """How likely draws as far off as `tokens` are; no token without mass may occur."""
    counts = torch.bincount(tokens, minlength=len(distribution)).tolist()
    expected = (distribution / distribution.sum() * len(tokens)).tolist()
    assert not any(count for count, mass in zip(counts, expected, strict=True) if mass == 0)
    return chi_square(counts, expected)


def chi_square(observed: list[int], expected: list[float]) -> float:
    """The p-value; cells that expect fewer than five count as one."""
    cells = [(a, b) for a, b in zip(observed, expected, strict=True) if b >= 5]
    rest = [(a, b) for a, b in zip(observed, expected, strict=True) if 0 < b < 5]
    if rest:
        cells.append((sum(a for a, _ in rest), sum(b for _, b in rest)))
    return float(stats.chisquare(*zip(*cells, strict=True)).pvalue)


def verifier_logits() -> Tensor:
    """One distribution for each place of a block, well apart from one another."""
    return 1.5 * torch.randn(WIDTH + 1, VOCABULARY, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def drafted(kind: str, sampling: Sampling, p: Tensor) -> tuple[Tensor, Tensor | None]:
    """Draft tokens `[samples, width]` and what they were drawn from: a bad drafter, a good one, or fixed tokens."""
    if kind == "fixed":
        return torch.arange(WIDTH).expand(SAMPLES, WIDTH), None
    if kind == "fixed likely":
        return p[:WIDTH].argmax(-1).expand(SAMPLES, WIDTH), None
    # The bad one prefers what the verifier does not, and now and then drafts what cannot be.
    q = sampling.probabilities(verifier_logits()[:WIDTH] * (1 if kind == "same" else -0.7))
    numbers = uniform(SEEDS[:, None], 5 + torch.arange(WIDTH), DRAFT)
    return draw(q.expand(SAMPLES, -1, -1), numbers), q.expand(SAMPLES, -1, -1)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("kind", ["bad", "same", "fixed", "fixed likely"])
def test_each_place_has_the_distribution_of_the_verifier(kind, name):
    sampling = FILTERS[name]
    p = sampling.probabilities(verifier_logits())
    tokens, q = drafted(kind, sampling, p)
    lengths = torch.full((SAMPLES,), 5)
    draft = Draft(tokens, torch.full((SAMPLES,), WIDTH), None, q)
    logits = verifier_logits().expand(SAMPLES, -1, -1)
    verdict = RejectionSampling(sampling).judge(logits, draft, SEEDS, lengths)
    written = torch.cat([tokens, tokens[:, :1]], 1)
    written.scatter_(1, verdict.accepted[:, None], verdict.replacement[:, None])
    tested = 0
    for place in range(WIDTH + 1):
        reached = verdict.accepted >= place
        if reached.sum() >= 200:
            assert pvalue(written[reached, place], p[place]) > 1e-3
            tested += 1
    assert tested >= (WIDTH + 1 if kind == "same" else 1)
    share = verdict.accepted.double().mean() / WIDTH
    assert share == 1 if kind == "same" else share < 0.7


def test_the_test_would_notice():
    """Accepting all, or replacing from p instead of the rest of it, is far off."""
    p = FILTERS["plain"].probabilities(verifier_logits())
    tokens, q = drafted("bad", FILTERS["plain"], p)
    assert pvalue(tokens[:, 0], p[0]) < 1e-12
    lengths = torch.full((SAMPLES,), 5)
    verdict = RejectionSampling().judge(
        verifier_logits().expand(SAMPLES, -1, -1), Draft(tokens, lengths * 0 + WIDTH, None, q), SEEDS, lengths
    )
    naive = torch.where(
        verdict.accepted > 0, tokens[:, 0], draw(p[0].expand(SAMPLES, -1), uniform(SEEDS, lengths, REPLACE))
    )
    assert pvalue(naive, p[0]) < 1e-12


def test_rows_with_shorter_drafts():
    """Ragged: a row's replacement comes from the place after its own draft."""
    p = FILTERS["plain"].probabilities(verifier_logits())
    tokens, q = drafted("same", FILTERS["plain"], p)
    short = SEEDS % (WIDTH + 1)
    verdict = RejectionSampling().judge(
        verifier_logits().expand(SAMPLES, -1, -1), Draft(tokens, short, None, q), SEEDS, torch.full((SAMPLES,), 5)
    )
    assert torch.equal(verdict.accepted, short)  # q equals p
    for place in range(WIDTH + 1):
        assert pvalue(verdict.replacement[short == place], p[place]) > 1e-3


CAP = 3
SIZES = dict(vocabulary=VOCABULARY, layers=1, width=16)
SAMPLING = Sampling(temperature=1.5, top_k=6, top_p=0.95, seed=11)


@functools.cache
def sequence_distribution() -> dict[tuple[int, ...], float]:
    """The exact chance of every output of up to three tokens, prefix by prefix."""
    model = tiny.seq2seq("bart", **SIZES)
    eos, start = model.config.eos_token_id, model.config.decoder_start_token_id
    chances, open_prefixes = {}, {(): 1.0}
    for _ in range(CAP):
        p = SAMPLING.probabilities(next_logits(model, [[start, *prefix] for prefix in open_prefixes]))
        further = {}
        for (prefix, chance), row in zip(open_prefixes.items(), p.tolist(), strict=True):
            for token, probability in enumerate(row):
                if probability > 0:
                    (chances if token == eos else further)[(*prefix, token)] = chance * probability
        open_prefixes = further
    return chances | open_prefixes


def source_of(model) -> list[int]:
    return [5, 3, 11, 10, 3, 4, 9, model.config.eos_token_id]


def next_logits(model, prefixes: list[list[int]]) -> Tensor:
    tokens, lengths = tiny.padded([source_of(model)] * len(prefixes), model.config.pad_token_id)
    cache = model.model.new_cache(len(prefixes))
    model.model.admit(cache, 0, model.model.encode(tokens, lengths))
    ids = torch.tensor(prefixes)
    return model.model.decode_block(cache, ids, lengths * 0, ids.shape[1], uniform=True).logits[:, -1]


def end_to_end_methods():
    bad = tiny.seq2seq("bart", 1, **SIZES).drafter()
    rule = RejectionSampling(SAMPLING)
    return {
        "alone": Speculative(None, FixedLength(0), rule),
        "a bad drafter": Speculative(bad, FixedLength(2), rule),
        "lookup, without probabilities": Speculative(NgramLookup(2, 1), FixedLength(2), rule),
    }


@pytest.mark.parametrize("name", end_to_end_methods())
def test_whole_sequences_have_the_distribution_of_the_verifier(name):
    model = tiny.seq2seq("bart", **SIZES)
    exact = sequence_distribution()
    assert math.isclose(sum(exact.values()), 1, abs_tol=1e-9) and len(exact) > 50
    engine = Engine(model.model, end_to_end_methods()[name], 2_500)
    for _ in range(SAMPLES):
        engine.submit(source_of(model), CAP)
    counts = dict.fromkeys(exact, 0)
    while engine.busy:
        for completion in engine.step():
            counts[tuple(completion.tokens)] += 1  # a sequence that cannot be is a KeyError
    assert sum(counts.values()) == SAMPLES
    expected = [chance * SAMPLES for chance in exact.values()]
    assert sum(mass >= 5 for mass in expected) > 30
    assert chi_square(list(counts.values()), expected) > 1e-3
    if name != "alone":
        assert 0.02 < engine.stats.acceptance < 0.95


def test_sampling_does_not_depend_on_the_batch(family):
    model = tiny.seq2seq(family)
    sources = tiny.sources(model, 7)
    little = tiny.noisy_copy(model, 0.02).drafter()
    for drafter in (None, little, NgramLookup()):
        method = Sample(0.8, top_p=0.9, seed=4, drafter=drafter)
        runs = [model.generate(sources, method, max_new_tokens=12, batch_size=size).sequences for size in (1, 3, 7)]
        assert runs[0] == runs[1] == runs[2]
        other = Sample(0.8, top_p=0.9, seed=5, drafter=drafter)
        assert model.generate(sources, other, max_new_tokens=12).sequences != runs[0]


def test_a_cold_enough_sample_is_greedy(family):
    model = tiny.seq2seq(family)
    sources = tiny.sources(model, 5)
    greedy = model.generate(sources, max_new_tokens=12).sequences
    for method in (Sample(top_k=1), Sample(temperature=1e-4), Sample(top_p=1e-5)):
        assert model.generate(sources, method, max_new_tokens=12).sequences == greedy
