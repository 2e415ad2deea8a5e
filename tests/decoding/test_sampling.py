"""Draws: uniform, independent, never of a token without mass; filters as Transformers has them."""

import copy

import pytest
import tiny
import torch
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from spec2seq import Sample, Seq2Seq, UsageError
from spec2seq.decoding.sampling import ACCEPT, DRAFT, REPLACE, Sampling, draw, uniform

MANY = torch.arange(20_000)
ZEROS = torch.zeros_like(MANY)


@pytest.mark.parametrize("stream", [ACCEPT, REPLACE, DRAFT])
@pytest.mark.parametrize("along", ["seeds", "positions", "far seeds"])
def test_uniform_is_uniform(stream, along):
    seeds, positions = {
        "seeds": (MANY, ZEROS + 7),
        "positions": (ZEROS + 3, MANY),
        "far seeds": (MANY * 1_000_003 + (1 << 40), ZEROS),
    }[along]
    numbers = uniform(seeds, positions, stream)
    assert numbers.dtype == torch.float64
    assert numbers.min() >= 0 and numbers.max() < 1
    assert len(numbers.unique()) == len(numbers)
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3
    # One draw says nothing about the next.
    assert abs(torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1]) < 0.03


def test_seed_position_and_stream_each_matter():
    base = uniform(MANY, ZEROS + 5, ACCEPT)
    for other in (
        uniform(MANY, ZEROS + 6, ACCEPT), uniform(MANY, ZEROS + 5, REPLACE), uniform(MANY, ZEROS + 5, DRAFT),
        uniform(MANY + 20_000, ZEROS + 5, ACCEPT),
    ):  # fmt: skip
        assert not (other == base).any()
        assert abs(torch.corrcoef(torch.stack([base, other]))[0, 1]) < 0.03


def test_the_same_numbers_in_any_batch():
    seeds, positions = MANY[:6, None], torch.arange(9)
    block = uniform(seeds, positions, ACCEPT)
    assert block.shape == (6, 9)
    alone = uniform(torch.tensor([4]), torch.tensor([7]), ACCEPT)
    assert block[4, 7] == alone[0]
    assert 0 <= uniform(torch.tensor([-1]), torch.tensor([0]), ACCEPT)[0] < 1  # a negative seed is a seed


def test_numbers_are_pinned():
    """The same draws with every release: these were written down once."""
    found = [uniform(torch.tensor([seed]), torch.tensor([2]), REPLACE).item() for seed in (0, 1, 1_000_003)]
    assert found == pytest.approx([0.7376992526901169, 0.7809382312867411, 0.10138471184679643], abs=1e-15)


def test_draw_inverts_the_sums():
    probabilities = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=torch.float64).repeat(6, 1)
    numbers = torch.tensor([0.0, 0.1999, 0.2001, 0.6999, 0.7001, 1 - 1e-16], dtype=torch.float64)
    assert draw(probabilities, numbers).tolist() == [0, 0, 2, 2, 3, 3]
    assert draw(7 * probabilities, numbers).tolist() == [0, 0, 2, 2, 3, 3]  # any positive total


def test_draw_never_takes_a_token_without_mass():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2_000, 16, generator=generator)
    weights *= torch.rand(2_000, 16, generator=generator) < 0.4
    weights = weights[weights.sum(-1) > 0]
    edges = weights.double().cumsum(-1) / weights.double().sum(-1, keepdim=True)
    for numbers in (torch.zeros(len(weights)), torch.full((len(weights),), 1 - 2**-53), *edges.T.clamp(max=1 - 2**-53)):
        tokens = draw(weights, numbers.double())
        assert (weights.gather(1, tokens[:, None]) > 0).all()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (0.7, None, None), (1.9, None, None), (1.0, 5, None), (1.0, 1, None), (1.0, 99, None), (1.0, None, 0.8),
        (1.0, None, 0.05), (1.0, None, 1.0), (0.6, 7, 0.7), (1.5, 3, 0.9),
    ],
)  # fmt: skip
def test_filters_are_those_of_transformers(temperature, top_k, top_p):
    logits = 2 * torch.randn(200, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        theirs.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        theirs.append(TopPLogitsWarper(top_p))
    expected = theirs(torch.zeros(200, 1), logits).softmax(-1)
    found = Sampling(temperature, top_k, top_p).probabilities(logits)
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    if top_p not in (None, 1.0) or top_k in (1, 5):
        assert (found == 0).any()


@pytest.mark.parametrize(
    ("min_p", "typical_p"), [(0.1, None), (0.9, None), (0.0, 0.9), (None, 0.2), (None, 0.001), (0.05, 0.7)]
)
def test_further_filters_are_those_of_transformers(min_p, typical_p):
    logits = 2 * torch.randn(200, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logits[:50, 7] = -torch.inf
    theirs = LogitsProcessorList([TemperatureLogitsWarper(1.3), TopKLogitsWarper(30)])
    theirs += [MinPLogitsWarper(min_p)] if min_p else []
    theirs += [TypicalLogitsWarper(typical_p)] if typical_p else []
    expected = theirs(torch.zeros(200, 1), logits).softmax(-1)
    found = Sampling(1.3, 30, min_p=min_p, typical_p=typical_p).probabilities(logits.view(20, 10, 40)).view(200, 40)
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_what_is_left_open_is_the_models():
    model = tiny.seq2seq("t5")
    config = copy.deepcopy(model.generation_config)
    config.update(temperature=1.7, top_k=9, top_p=0.9, min_p=0.02, typical_p=0.95)
    own = Seq2Seq(model.model, model.config, None, config)
    sources = tiny.sources(model, 6)
    told = dict(temperature=1.7, top_k=9, top_p=0.9, min_p=0.02, typical_p=0.95)
    off = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0)

    def rows(seq2seq, settings):
        return seq2seq.generate(sources, Sample(**settings, seed=3), max_new_tokens=9).sequences

    assert rows(own, {}) == rows(model, told) != rows(model, {})
    assert rows(own, off) == rows(model, {}) == rows(model, off)
    method = Sample()
    assert method.completed({"top_k": 3})._choosers is method._choosers


def test_half_precision_is_widened():
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    assert Sampling().probabilities(logits).dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; allowed: at least"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1; allowed: at least 0"),
        ({"min_p": 1.1}, "min_p is 1.1; allowed: from"),
        ({"typical_p": 0.0}, "typical_p is 0.0; allowed: from"),
        ({"top_p": 0.0}, "top_p is 0.0; allowed: from"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"seed": -1}, "seed is -1; allowed: from 0"),
    ],
)
def test_values_out_of_range(values, message):
    with pytest.raises(UsageError) as error:
        Sampling(**values)
    assert message in str(error.value)
