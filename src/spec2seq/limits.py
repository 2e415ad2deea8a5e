"""How long an output may be: by what was asked for, the generation config, the model's positions, and its source."""

from collections.abc import Sequence
from typing import Any

from spec2seq.errors import UsageError

DEFAULT_MAX_NEW_TOKENS = 256  # where neither the caller nor the generation config says


def cap(asked: int | None, generation_config: Any, positions: int | None) -> int:
    """The most tokens of any output; `positions` are the model's, None: no limit of its own. Raises UsageError if
    `asked` is not possible."""
    if asked is not None:
        if asked < 1 or (positions is not None and asked > positions):
            allowed = "at least 1" if positions is None else f"1 to {positions}, the model's positions"
            raise UsageError(f"max_new_tokens is {asked}; allowed: {allowed}")
        return asked
    value = getattr(generation_config, "max_new_tokens", None)
    if value is None:
        total = getattr(generation_config, "max_length", None)
        value = total - 1 if total and total > 20 else DEFAULT_MAX_NEW_TOKENS  # 20: Transformers' stand-in
    return min(value, positions or value)


def of_source(source: Sequence[int], most: int, max_len_a: float | None, max_len_b: int | None) -> int:
    """`most`, or max_len_a × the source's tokens + max_len_b if that is less; at least 1. None for both: `most`."""
    if max_len_a is None and max_len_b is None:
        return most
    return max(1, min(most, int((max_len_a or 0.0) * len(source) + (max_len_b or 0))))
