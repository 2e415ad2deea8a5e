"""How long an output may be: by what was asked for, the generation config, the model's positions, and its source."""

from collections.abc import Sequence
from typing import Any

from spec2seq.config import check_whole
from spec2seq.errors import UsageError

DEFAULT_MAX_NEW_TOKENS = 256  # where neither the caller nor the generation config says
STAND_IN = 20  # a max_length that Transformers 4 wrote where nobody had set one


def cap(asked: int | None, generation_config: Any, positions: int | None, given: int = 0) -> int:
    """The most tokens of an output behind a prompt of `given` tokens; `positions` are the model's, None: no limit of
    its own. Raises UsageError if `asked` is not possible."""
    most = None if positions is None else positions - given
    if asked is not None:
        check_whole("max_new_tokens", asked)
        if asked < 1 or (most is not None and asked > most):
            behind = f" behind a prompt of {given}" if given else ""
            allowed = "at least 1" if most is None else f"1 to {most}, the model's positions{behind}"
            raise UsageError(f"max_new_tokens is {asked}; allowed: {allowed}")
        return asked
    value = getattr(generation_config, "max_new_tokens", None)
    if value is None:
        total = getattr(generation_config, "max_length", None)
        # The decoder's start and the prompt are part of a length.
        value = DEFAULT_MAX_NEW_TOKENS if total in (None, STAND_IN) else max(1, total - 1 - given)
    return value if most is None else min(value, most)


def of_source(source: Sequence[int], most: int, max_len_a: float | None, max_len_b: int | None) -> int:
    """`most`, or max_len_a × the source's tokens + max_len_b if that is less; at least 1. None for both: `most`."""
    if max_len_a is None and max_len_b is None:
        return most
    return max(1, min(most, int((max_len_a or 0.0) * len(source) + (max_len_b or 0))))
