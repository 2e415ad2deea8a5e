"""Token-budget batches: the budget holds, every row comes once an epoch, few pads, and a stream that resumes."""

import itertools

import numpy as np
import torch

from spec2seq.training.batches import BatchStream, Collator, TokenBudgetSampler, TokenizedPairs


def _sampler(rows: int = 500, budget: int = 300) -> TokenBudgetSampler:
    random = np.random.default_rng(0)
    target = random.integers(1, 90, rows)
    return TokenBudgetSampler(np.maximum(1, target + random.integers(-5, 6, rows)), target, budget, seed=3)


def test_every_row_once_within_the_budget_and_few_pads() -> None:
    sampler = _sampler()
    cost = np.maximum(sampler.source_lengths, sampler.target_lengths)
    batches = list(sampler)
    assert sorted(itertools.chain(*batches)) == list(range(500))
    assert all(cost[batch].max() * len(batch) <= 300 for batch in batches)
    padded = sum(sampler.target_lengths[batch].max() * len(batch) for batch in batches)
    assert sampler.target_lengths.sum() / padded > 0.95


def test_epochs_differ_repeat_exactly_and_have_one_length() -> None:
    sampler = _sampler()
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert first == list(sampler) != second
    assert len(first) == len(second) == len(sampler)


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    sampler = TokenBudgetSampler(np.array([5, 50, 5]), np.array([5, 50, 5]), 20)
    assert sorted(map(sorted, sampler)) == [[0, 2], [1]]


def test_the_stream_goes_on_where_a_run_stopped() -> None:
    sampler = _sampler()
    count = len(sampler)
    whole = list(itertools.islice(BatchStream(sampler, 0, 10**9), 2 * count + 5))
    for start in (0, 7, count, count + 3):
        rest = list(itertools.islice(BatchStream(sampler, start, 10**9), 10))
        assert rest == whole[start : start + 10]


def test_collator_shifts_labels_and_masks_pads() -> None:
    rows = TokenizedPairs.from_lists([[5, 6, 0], [7, 0]], [[8, 0], [9, 10, 11, 0]])
    batch = Collator(pad=99, decoder_start=98)([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == [[5, 6, 0], [7, 0, 99]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[8, 0, -100, -100], [9, 10, 11, 0]]
    assert batch["decoder_input_ids"].tolist() == [[98, 8, 0, 99], [98, 9, 10, 11]]
    assert batch["labels"].dtype == torch.int64
