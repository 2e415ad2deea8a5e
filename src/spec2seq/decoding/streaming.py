"""Transformers' streamer protocol: `put` with token ids as they are committed, `end` after the last.

The first `put` is the decoder start token and what the output is to begin with, `[1, length]`; each later one has the
tokens that an iteration committed, `[tokens]`: Transformers' own decoding gives one at a time, a draft several.
"""

from typing import Any

import torch

from spec2seq.decoding.loop import Engine
from spec2seq.decoding.methods import Speculative
from spec2seq.decoding.scheduler import Completion
from spec2seq.errors import UsageError


class Streamed:
    """Follows an engine with one row and hands what it commits to `streamer`."""

    def __init__(self, streamer: Any):
        self.streamer, self.put = streamer, 0

    def start(self, prompt: list[int]) -> None:
        """With what the output begins with, the decoder start included."""
        self.streamer.put(torch.tensor([prompt]))

    def follow(self, engine: Engine, done: list[Completion]) -> None:
        """To be called after each step with what it returned."""
        tokens = done[0].tokens if done else engine.scheduler.running[0].tokens
        if len(tokens) > self.put:
            self.streamer.put(torch.tensor(tokens[self.put :]))
            self.put = len(tokens)

    def end(self) -> None:
        self.streamer.end()


def check_streamable(method: Any, sources: int) -> None:
    """Raises UsageError where a streamer cannot follow: what beam search writes may change until its end."""
    if not isinstance(method, Speculative):
        raise UsageError(
            f"streamer cannot be used with {type(method).__name__}; allowed: greedy decoding, sampling and speculation"
        )
    if sources != 1:
        raise UsageError(f"streamer follows one source at a time; there are {sources}")
