"""What `generate` gives back: rows with their texts, tokens and counts."""

from dataclasses import dataclass

from spec2seq.decoding.stats import Counts, Stats


@dataclass(frozen=True)
class Hypothesis:
    """One of the best outputs of beam search. `score` is its log-probability over its length to the power of
    length_penalty."""

    text: str | None
    tokens: list[int]
    score: float


@dataclass(frozen=True)
class Row:
    """One generated output: its text, its token ids (end token included) and its counts. `trace`, if asked for,
    has one letter a token: d for the drafter, v for the verifier; `log_probabilities`, if asked for, one number a
    token, in nats. Beam search adds its `hypotheses`, the best, which is this output, first."""

    text: str | None
    tokens: list[int]
    counts: Counts
    trace: str | None = None
    hypotheses: tuple[Hypothesis, ...] = ()
    log_probabilities: list[float] | None = None


@dataclass(frozen=True)
class Generation:
    """The rows in the order of the sources, and the counts and seconds of the run."""

    rows: list[Row]
    stats: Stats

    @property
    def texts(self) -> list[str]:
        return [row.text or "" for row in self.rows]

    @property
    def sequences(self) -> list[list[int]]:
        return [row.tokens for row in self.rows]
