"""Logits processors in the compiled executor's terms."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spec2seq.decoding.processors import Processor, Rule
from spec2seq.kernels import library as c

ALWAYS = (0, 0, 1 << 62)  # places are counted from 0


class NativeRules:
    """The rules of processors that all have them; `known` says which."""

    def __init__(self, processors: Sequence[Processor]):
        rules = [rule for processor in processors for rule in processor.rules]
        self.kept: list[Tensor] = []
        self.rules = (c.Rule * len(rules))(*map(self._described, rules))
        self.asked = c.Rules(self.rules, len(rules))

    @staticmethod
    def known(processors: Sequence[Processor], vocabulary: int) -> bool:
        """Whether the executor knows them all; nothing checks an id there."""
        rules = [getattr(processor, "rules", None) for processor in processors]
        if None in rules:
            return False
        ids = [id for part in rules for rule in part for sequence in rule.tokens for id in sequence]
        return all(0 <= id < vocabulary for id in ids)

    def over(self, tokens: Tensor, limits: Tensor, given: Tensor) -> Any:
        """A pointer to them, for rows with these tokens `[rows, capacity]`, limits and prompts `[rows]`, as in
        `Prefix`."""
        self.asked.tokens, self.asked.token_stride = tokens.data_ptr(), tokens.stride(0)
        self.asked.limits, self.asked.given = limits.data_ptr(), given.data_ptr()
        return ctypes.pointer(self.asked)

    def _described(self, rule: Rule) -> c.Rule:
        where = rule.where
        place = ALWAYS if where is None else (c.COUNTED[where.counted], where.low, where.high)
        tokens = torch.tensor(rule.tokens, dtype=torch.long)
        self.kept.append(tokens)
        count, size = tokens.shape if tokens.numel() else (0, 0)
        return c.Rule(c.RULES[rule.kind], *place, tokens.data_ptr(), count, size, rule.value)
