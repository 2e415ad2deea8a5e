"""One option of a run or of its method: what it is called, what it may be, and who takes it."""

from dataclasses import dataclass
from typing import Any

from spec2seq.errors import UsageError

METHODS = ("greedy", "beam", "sample", "assisted", "bild", "lookup", "specdec")


@dataclass(frozen=True)
class Option:
    """One option: its type and range, what the library does without it, and the methods that take it.

    `word` may stand for None ("auto", "none"). Without `methods` every method takes it. Where `with_drafter` is
    true, sample takes it only with a drafter.
    """

    name: str
    type: type
    help: str
    default: Any
    methods: tuple[str, ...] = METHODS
    word: str | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    with_drafter: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def of_method(self) -> bool:
        """Whether only some methods take it."""
        return self.methods != METHODS

    @property
    def allowed(self) -> str:
        """The values that are allowed, in words."""
        if self.choices:
            return ", ".join(self.choices)
        words = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}[self.type]
        if self.low is not None:
            words += f" from {self.low} to {self.high}" if self.high is not None else f" of at least {self.low}"
        return words + (f", or {self.word}" if self.word else "")

    def parse(self, value: Any, where: str) -> Any:
        """A flag's text or a config file's value → the value. Raises UsageError naming `where`."""
        if self.word and (value is None or value == self.word):
            return None
        parsed = self._converted(value)
        low = -float("inf") if self.low is None else self.low
        high = float("inf") if self.high is None else self.high
        in_range = self.type in (str, bool) or (parsed is not None and low <= parsed <= high)
        if parsed is None or not in_range or (self.choices and parsed not in self.choices):
            raise UsageError(f"{where} is {value!r}; allowed: {self.allowed}")
        return parsed

    def _converted(self, value: Any) -> Any:
        """The value in the option's type; None if it is not one."""
        if self.type is bool and isinstance(value, str):
            return {"true": True, "false": False}.get(value)
        if isinstance(value, bool) or self.type in (bool, str):
            return value if type(value) is self.type else None
        if isinstance(value, str) or (self.type is float and isinstance(value, int)):
            try:
                return self.type(value)
            except ValueError:
                return None
        return value if isinstance(value, self.type) else None
