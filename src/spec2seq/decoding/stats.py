"""Counts of what a generation did. They are returned, never printed; seconds are apart from counts."""

from dataclasses import dataclass, field


@dataclass
class Counts:
    """Counts of one row, or of a whole run (the sum over its rows).

    `verifier_calls` counts the passes a row took part in, so that it does not depend on the batch size; the passes
    themselves are in `Stats`. So do `drafter_calls` and `drafter_tokens` of a little model; a block drafter reads all
    rows alike.
    """

    new_tokens: int = 0
    verifier_calls: int = 0
    drafter_calls: int = 0
    verifier_tokens: int = 0  # tokens fed to the verifier, drafts included
    drafter_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    discarded: int = 0  # drafted tokens that were not emitted
    fallbacks: int = 0  # drafts that ended because the drafter was unsure
    rollbacks: int = 0  # passes in which the verifier rejected a drafted token
    handovers: int = 0  # drafts that ended at the longest that was asked for
    unverified: int = 0  # drafted tokens that ended a row and were never verified (BiLD without verify_tail)
    drafted_at: list[int] = field(default_factory=list)  # [draft position] how often a token was drafted there
    accepted_at: list[int] = field(default_factory=list)

    @property
    def tokens_per_verifier_call(self) -> float:
        """New tokens per pass of the verifier; 1 without speculation. 0 where nothing ran."""
        return self.new_tokens / self.verifier_calls if self.verifier_calls else 0.0

    @property
    def acceptance(self) -> float | None:
        """Share of drafted tokens that were accepted; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def fallback_percentage(self) -> float:
        """Fallbacks for 100 tokens written, discarded ones included and the last of a row left out: what the
        reproduction of BiLD (PopoDev/BiLD) reports. 0 where nothing was written."""
        return self._percentage(self.fallbacks)

    @property
    def rollback_percentage(self) -> float:
        """Rollbacks, likewise."""
        return self._percentage(self.rollbacks)

    def _percentage(self, events: int, rows: int = 1) -> float:
        written = self.new_tokens + self.discarded - rows
        return 100 * events / written if written > 0 else 0.0

    def as_dict(self) -> dict:
        """Everything, ratios included, ready for JSON."""
        return vars(self) | {
            "tokens_per_verifier_call": self.tokens_per_verifier_call,
            "acceptance": self.acceptance,
            "fallback_percentage": self.fallback_percentage,
            "rollback_percentage": self.rollback_percentage,
        }

    def judged(self, drafted: int, accepted: int, rejected: bool, fell_back: bool) -> None:
        """Count one verdict: `accepted` of `drafted` tokens were emitted."""
        self.drafted += drafted
        self.accepted += accepted
        self.discarded += drafted - accepted
        self.fallbacks += fell_back
        self.rollbacks += rejected
        for counts, upto in ((self.drafted_at, drafted), (self.accepted_at, accepted)):
            counts.extend([0] * (upto - len(counts)))
            for position in range(upto):
                counts[position] += 1

    def add(self, other: "Counts") -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, list):
                mine.extend([0] * (len(value) - len(mine)))
                for position, count in enumerate(value):
                    mine[position] += count
            elif name in Counts.__dataclass_fields__:
                setattr(self, name, mine + value)


@dataclass
class Stats(Counts):
    """A run: the sum of its rows' counts, its passes and its wall-clock time."""

    rows: int = 0
    verifier_passes: int = 0  # batched passes, each over the rows then in flight
    drafter_passes: int = 0
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)  # seconds per phase; profile mode only

    def _percentage(self, events: int, rows: int = 1) -> float:
        return super()._percentage(events, self.rows)
