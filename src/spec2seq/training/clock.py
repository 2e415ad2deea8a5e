"""How far a run is, in steps, epochs and wall clock, over all of its sessions; and the learning rate from that."""

import time
from dataclasses import dataclass, field

from spec2seq.training.recipe import TrainingConfig


@dataclass
class Clock:
    """Counts of a run: steps, batches of all processes, target tokens. `seconds` is wall clock of earlier sessions;
    this session's is added while it runs.

    Several processes must decide alike by it: `agreed` is then the first one's `own_seconds()` at the last step.
    """

    config: TrainingConfig
    batches_per_epoch: int
    step: int = 0
    batches: int = 0
    tokens: int = 0
    seconds: float = 0.0
    session_limit: float | None = None
    started: float = field(default_factory=time.monotonic)
    agreed: float | None = None

    def own_seconds(self) -> float:
        """Wall clock since this session began, in seconds, in this process."""
        return time.monotonic() - self.started

    def session_seconds(self) -> float:
        """The same, in every process alike."""
        return self.own_seconds() if self.agreed is None else self.agreed

    def elapsed(self) -> float:
        """Wall clock of the whole run so far, in seconds."""
        return self.seconds + self.session_seconds()

    def epochs(self) -> float:
        """How often the data was seen."""
        return self.batches / self.batches_per_epoch

    def progress(self) -> float:
        """How much of the nearest limit is used up: 0 at the start, 1 or more at the end."""
        config, shares = self.config, [0.0]
        if config.max_steps is not None:
            shares.append(self.step / config.max_steps)
        if config.max_epochs is not None:
            shares.append(self.epochs() / config.max_epochs)
        if config.budget_minutes is not None:
            shares.append(self.elapsed() / (60 * config.budget_minutes))
        return max(shares)

    def session_over(self) -> bool:
        """Whether the time given to this session is used up."""
        return self.session_limit is not None and self.session_seconds() >= self.session_limit

    def learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, then the inverse square root of the step, then a linear cool-down to zero by progress."""
        warmup, cooldown = self.config.warmup_steps, self.config.cooldown
        factor = min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5)
        if cooldown > 0:
            factor *= min(1.0, max(0.0, (1 - self.progress()) / cooldown))
        return factor
