"""Batches of about equal length under a token budget, so that few tokens are pads."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch


class TokenizedPairs(torch.utils.data.Dataset):
    """Token ids of all pairs in two flat arrays; item i is (source ids, target ids), EOS included, as int64."""

    def __init__(self, source: np.ndarray, source_ends: np.ndarray, target: np.ndarray, target_ends: np.ndarray):
        self.source, self.source_ends = source, source_ends
        self.target, self.target_ends = target, target_ends
        self.source_lengths = np.diff(source_ends, prepend=0)
        self.target_lengths = np.diff(target_ends, prepend=0)

    @classmethod
    def from_lists(cls, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> "TokenizedPairs":
        """From one list of ids a row; source and target lists have the same length."""
        arrays = []
        for rows in (sources, targets):
            ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
            flat = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=ends[-1] if rows else 0)
            arrays += [flat, ends]
        return cls(*arrays)

    def __len__(self) -> int:
        return len(self.source_ends)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        source_end, target_end = self.source_ends[index], self.target_ends[index]
        source = self.source[source_end - self.source_lengths[index] : source_end]
        target = self.target[target_end - self.target_lengths[index] : target_end]
        return source.astype(np.int64), target.astype(np.int64)


class TokenBudgetSampler(torch.utils.data.Sampler):
    """Batches of row numbers with rows x (longest source or target) <= `budget`; each row once an epoch.

    Rows are sorted by length with random ties, cut into batches, and the batches shuffled: another seed or epoch
    gives other batches, the number of batches stays the same.
    """

    def __init__(self, source_lengths: np.ndarray, target_lengths: np.ndarray, budget: int, seed: int = 0):
        self.source_lengths, self.target_lengths = np.asarray(source_lengths), np.asarray(target_lengths)
        self.budget, self.seed, self.epoch = budget, seed, 0
        self._length = len(self._cut(self._order(0)))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._cut(self._order(self.epoch))
        random = np.random.default_rng([self.seed, self.epoch, 1])
        for index in random.permutation(len(batches)):
            yield batches[index].tolist()

    def _order(self, epoch: int) -> np.ndarray:
        ties = np.random.default_rng([self.seed, epoch, 0]).random(len(self.target_lengths))
        return np.lexsort((ties, self.source_lengths, self.target_lengths))

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        cost = np.maximum(self.source_lengths, self.target_lengths)[order]
        batches, start, longest = [], 0, 0
        for end, length in enumerate(cost.tolist()):
            longest = max(longest, length)
            if end > start and longest * (end - start + 1) > self.budget:
                batches.append(order[start:end])
                start, longest = end, length
        if len(order):
            batches.append(order[start:])
        return batches


class Collator:
    """Rows of ids to a padded batch: input_ids, attention_mask, decoder_input_ids, labels (-100 where padded)."""

    def __init__(self, pad: int, decoder_start: int):
        self.pad, self.decoder_start = pad, decoder_start

    def __call__(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
        source_ids = _stack([source for source, _ in rows], self.pad)
        labels = _stack([target for _, target in rows], -100)
        decoder_ids = np.full_like(labels, self.pad)
        decoder_ids[:, 0] = self.decoder_start
        decoder_ids[:, 1:] = np.where(labels[:, :-1] == -100, self.pad, labels[:, :-1])
        lengths = np.array([len(source) for source, _ in rows])
        mask = (np.arange(source_ids.shape[1]) < lengths[:, None]).astype(np.int64)
        arrays = {"input_ids": source_ids, "attention_mask": mask, "decoder_input_ids": decoder_ids, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _stack(rows: Sequence[np.ndarray], filler: int) -> np.ndarray:
    stacked = np.full((len(rows), max(len(row) for row in rows)), filler, dtype=np.int64)
    for index, row in enumerate(rows):
        stacked[index, : len(row)] = row
    return stacked


class BatchStream(torch.utils.data.Sampler):
    """The batches of all epochs as one stream from batch number `start` on, how a resumed run goes on where it was;
    only every `stride`-th of them, how several processes share the batches."""

    def __init__(self, sampler: TokenBudgetSampler, start: int, total: int, stride: int = 1):
        self.sampler, self.start, self.total, self.stride = sampler, start, total, stride

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(self._all(), 0, None, self.stride)

    def _all(self) -> Iterator[list[int]]:
        epoch, skipped = divmod(self.start, len(self.sampler))
        while True:
            self.sampler.set_epoch(epoch)
            yield from itertools.islice(iter(self.sampler), skipped, None)
            epoch, skipped = epoch + 1, 0
