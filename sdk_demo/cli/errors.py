"""Errors of the command line, and how a command reports an error.

Any error that Pocketrank defines is one red line on stderr; any other exception keeps its traceback. An error is recognised by
the package of its class, so that a component's new error needs no entry in a list.

Errors::

    CliError                   wrong input to the command line
    ├── ConfirmationError      a question that nobody is there to answer
    ├── DriftError             inputs that have drifted further than they may
    ├── OptionError            a value that the option does not accept
    └── OutputError            a report that cannot be written
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = [
    "CliError",
    "ConfirmationError",
    "DriftError",
    "OptionError",
    "OutputError",
    "exit_on_domain_error",
    "is_domain_error",
]

_WRONG_INPUT = 2


class CliError(ValueError):
    """Wrong input to the command line."""


class ConfirmationError(CliError):
    """A question that nobody is there to answer, because the input is no terminal."""


class DriftError(CliError):
    """Inputs have drifted further than they may."""


class OptionError(CliError):
    """A value that the option does not accept. The message begins with the option, as is the custom of command lines."""

    def __init__(self, option: str, expected: str, got: str) -> None:
        super().__init__(f"{option}: expected {expected}, got `{got}`")
        self.option, self.expected, self.got = option, expected, got


class OutputError(CliError):
    """A report that cannot be written."""


def is_domain_error(error: BaseException) -> bool:
    """Return whether Pocketrank defines the class of `error` or one of its bases."""
    return any(kind.__module__.partition(".")[0] == "pocketrank" for kind in type(error).__mro__)


@contextmanager
def exit_on_domain_error() -> Iterator[None]:
    """Turn an error that Pocketrank defines into one red line `error: …` on stderr and exit code 2."""
    try:
        yield
    except Exception as error:
        if not is_domain_error(error):
            raise
        line = " ".join(part.strip() for part in str(error).splitlines()) or type(error).__name__
        typer.secho(f"error: {line}", fg="red", err=True)
        raise SystemExit(_WRONG_INPUT) from None
