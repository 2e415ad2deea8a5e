"""Errors a user can cause. Every message names the input, what is wrong and what is allowed."""


class Spec2SeqError(Exception):
    """Something failed at run time; the command line exits with code 1."""

    exit_code = 1


class UsageError(Spec2SeqError):
    """An argument, option or configuration value is not allowed; exit code 2."""

    exit_code = 2


def missing_extra(package: str, extra: str) -> Spec2SeqError:
    """The error for an optional dependency that is not installed, with the command that brings it."""
    return Spec2SeqError(f"this needs the package {package!r}; install it with: pip install 'spec2seq[{extra}]'")
