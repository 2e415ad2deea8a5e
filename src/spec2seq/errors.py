"""Errors a user can cause. Every message names the input, what is wrong and what is allowed."""


class Spec2SeqError(Exception):
    """Something failed at run time; the command line exits with code 1."""

    exit_code = 1


class UsageError(Spec2SeqError):
    """An argument, option or configuration value is not allowed; exit code 2."""

    exit_code = 2


def first_line(error: Exception) -> str:
    """What an error says, in one line, with the next one where it ends with a colon; its type if it says nothing."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def missing_extra(package: str, extra: str) -> Spec2SeqError:
    """The error for an optional dependency that is not installed, with the command that brings it."""
    return Spec2SeqError(f"this needs the package {package!r}; install it with: pip install 'spec2seq[{extra}]'")
