"""Speculative sampling has the verifier's distribution, whatever the drafter (Leviathan et al. 2023, theorem 1)."""

import itertools

import pytest
import tiny
import torch
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from spec2seq import FixedLength, RejectionSampling, Sample, Seq2Seq, Speculative, UsageError
from spec2seq.decoding.acceptance import Draft
from spec2seq.decoding.sampling import ACCEPT, DRAFT, REPLACE, Sampling, draw, uniform

SAMPLES = 20_000
VOCABULARY = 16
FILTERS = {
    "plain": Sampling(),
    "temperature": Sampling(temperature=0.6),
    "top_k": Sampling(top_k=5),
    "top_p": Sampling(top_p=0.8),
    "all": Sampling(temperature=1.5, top_k=12, top_p=0.9),
}


def p_value(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """Chi-square of counts against probabilities; tokens that cannot come must not have come."""
    possible = expected > 0
    assert observed[~possible].sum() == 0
    share = expected[possible] / expected[possible].sum()
    return stats.chisquare(observed[possible].numpy(), (share * observed.sum()).numpy()).pvalue


def logits_of(seed: int) -> torch.Tensor:
    return 2 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("drawn", [True, False], ids=["drafter with probabilities", "drafter without"])
@pytest.mark.parametrize("name", FILTERS)
def test_judged_tokens_have_the_verifiers_distribution(name, drawn):
    """Two drafted tokens each; a bad drafter: its distribution has nothing to do with the verifier's."""
    sampling = FILTERS[name]
    seeds, lengths = torch.arange(SAMPLES), torch.ones(SAMPLES, dtype=torch.long)
    p = torch.stack([sampling.probabilities(logits_of(place)) for place in range(3)])
    q = torch.stack([sampling.probabilities(logits_of(10 + place)) for place in range(2)])
    if drawn:
        numbers = torch.stack([uniform(seeds, lengths + place, DRAFT) for place in range(2)], 1)
        tokens = draw(q.expand(SAMPLES, -1, -1), numbers)
    else:
        tokens = p[:2].topk(3).indices[:, 2].expand(SAMPLES, -1)  # neither the likeliest nor impossible
    draft = Draft(tokens, torch.full_like(lengths, 2), probabilities=q.expand(SAMPLES, -1, -1) if drawn else None)
    logits = torch.stack([logits_of(place) for place in range(3)]).expand(SAMPLES, -1, -1)
    verdict = RejectionSampling(sampling).judge(logits, draft, seeds, lengths)
    written = torch.cat([tokens, tokens[:, :1]], 1).scatter(1, verdict.accepted[:, None], verdict.replacement[:, None])
    assert 0 < verdict.accepted.double().mean() < 1.9  # neither always nor never right
    for place in range(3):
        there = written[verdict.accepted >= place, place]
        assert p_value(torch.bincount(there, minlength=VOCABULARY).double(), p[place]) > 1e-3


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.9)], ids=["plain", "top_p"])
def test_two_tokens_through_the_engine(sampling):
    """All pairs of first tokens, against their enumerated probabilities, through drafter, cache and loop."""
    model, little = (tiny.seq2seq("marian", seed, vocabulary=12, layers=1, width=16) for seed in (0, 5))
    source, n = [4, 7, 0], 4_000
    method = Speculative(little.drafter(), FixedLength(2), RejectionSampling(sampling))
    out = model.generate([source] * n, method, max_new_tokens=2, batch_size=250)
    assert 0.02 < out.stats.acceptance < 0.9
    eos = model.config.eos_token_id
    expected = {}
    first = sampling.probabilities(next_logits(model, source, []))
    for a in range(12):
        if a == eos:
            expected[(a,)] = first[a]
            continue
        second = sampling.probabilities(next_logits(model, source, [a]))
        expected.update({(a, b): first[a] * second[b] for b in range(12)})
    keys = list(expected)
    counts = torch.zeros(len(keys), dtype=torch.float64)
    for sequence in out.sequences:
        counts[keys.index(tuple(sequence))] += 1
    shares = torch.tensor([float(expected[key]) for key in keys], dtype=torch.float64)
    assert abs(shares.sum() - 1) < 1e-9
    common = shares * n >= 5  # chi-square wants five expected in a cell; the rest is one cell
    merge = [torch.cat([x[common], x[~common].sum()[None]]) for x in (counts, shares)]
    assert p_value(*merge) > 1e-3


def next_logits(model: Seq2Seq, source: list[int], prefix: list[int]) -> torch.Tensor:
    net = model.model
    tokens, lengths = tiny.padded([source], model.config.pad_token_id)
    cache = net.new_cache(1)
    net.admit(cache, 0, net.encode(tokens, lengths))
    ids = torch.tensor([[net.architecture.decoder_start_token_id, *prefix]])
    return net.decode_block(cache, ids, torch.zeros(1, dtype=torch.long), ids.shape[1], uniform=True).logits[0, -1]


def test_a_seed_draws_the_same_at_any_batch_size_and_another_seed_another():
    model = tiny.seq2seq("t5")
    sources = tiny.sources(model, 9)
    runs = {
        (seed, batch): model.generate(sources, Sample(seed=seed), max_new_tokens=12, batch_size=batch).sequences
        for seed, batch in itertools.product((1, 2), (1, 4))
    }
    assert runs[1, 1] == runs[1, 4] and runs[2, 1] == runs[2, 4]
    assert runs[1, 1] != runs[2, 1]


def test_filters_are_those_of_transformers():
    logits = 3 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = logits
    for warp in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.85)):
        expected = warp(None, expected)
    ours = Sampling(temperature=0.7, top_k=20, top_p=0.85).probabilities(logits)
    torch.testing.assert_close(ours, expected.softmax(-1))


def test_numbers_are_uniform_and_independent():
    seeds, positions = torch.arange(200)[:, None], torch.arange(100)
    streams = {stream: uniform(seeds, positions, stream).flatten() for stream in (ACCEPT, REPLACE, DRAFT)}
    for numbers in streams.values():
        assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3
        assert numbers.unique().numel() == numbers.numel()
    for a, b in itertools.combinations(streams.values(), 2):
        assert abs(stats.pearsonr(a.numpy(), b.numpy()).statistic) < 0.03


def test_a_token_without_mass_is_never_drawn():
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).expand(3, -1)
    assert draw(probabilities, torch.tensor([0.0, 0.5, 1.0])).tolist() == [1, 3, 3]


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 0.0), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.5), ("temperature", -1.0)]
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(UsageError, match=name):
        Sampling(**{name: value})
