"""Frozen dataclasses from YAML or JSON: an unknown key or a wrong type is an error, never ignored."""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from spec2seq.errors import UsageError

T = TypeVar("T")


def load_mapping(path: str | Path) -> dict[str, Any]:
    """Read one YAML or JSON mapping (JSON is YAML). Raises UsageError if it cannot be read or is no mapping."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not readable as YAML or JSON: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected keys with values, found {type(values).__name__}")
    return values


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make the frozen dataclass `cls` from `values`, nested dataclasses included.

    Raises UsageError that starts with `where` for an unknown key (with the nearest known one), a missing
    key or a value of the wrong type. Ranges are checked by each dataclass's own `__post_init__`.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(fields)}"
            raise UsageError(f"{where}: unknown key {key!r}; {hint}")
    hints = typing.get_type_hints(cls)
    made = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in made:
            raise UsageError(f"{where}: missing key {name!r}")
    try:
        return cls(**made)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def check_range(name: str, value: float | None, low: float | None = None, high: float | None = None) -> None:
    """Raise UsageError naming `name` unless `value` is None or a number with low <= value <= high."""
    if value is None:
        return
    least, most = -math.inf if low is None else low, math.inf if high is None else high
    if not isinstance(value, numbers.Real) or not least <= value <= most:
        bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
        raise UsageError(f"{name} is {value!r}; allowed: {'numbers' if low is high is None else bounds}")


def check_whole(name: str, value: int, low: int | None = None, high: int | None = None) -> None:
    """The same of whole numbers; None is none."""
    if not isinstance(value, numbers.Integral):
        raise UsageError(f"{name} is {value!r}; allowed: whole numbers")
    check_range(name, value, low, high)


def check_choice(name: str, value: Any, choices: typing.Iterable[Any]) -> None:
    """Raise UsageError naming `name` unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        raise UsageError(f"{name} is {value!r}; allowed: {', '.join(map(str, choices))}")


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: expected keys with values, found {value!r}")
        return build(hint, value, where)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: expected a list, found {value!r}")
        return origin(_convert(arguments[0], item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is Any or (isinstance(value, hint) and not (hint in (int, float) and isinstance(value, bool))):
        return value
    raise UsageError(f"{where}: expected {hint.__name__}, found {value!r}")
