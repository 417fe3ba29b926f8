"""What the command line does with an error: one red line for ours, a traceback for everything else.

Every component has its own small tree of errors, and each of them is defined in one of our packages. That is the rule here
too, so a new tree needs no entry in a list::

    CliError                   the command line itself cannot go on
    ├── OptionError            the value of an option is not what the command takes
    └── OutputError            a report cannot be written where it was asked for
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = ["CliError", "OptionError", "OutputError", "exit_on_domain_error", "is_domain_error"]

_WRONG_INPUT = 2


class CliError(ValueError):
    """The command line itself cannot go on."""


class OptionError(CliError):
    """The value of an option is not what the command takes; the message says what it takes."""

    def __init__(self, option: str, expected: str, got: str) -> None:
        super().__init__(f"{option}: expected {expected}, got `{got}`")
        self.option, self.expected, self.got = option, expected, got


class OutputError(CliError):
    """A report cannot be written where it was asked for; the message says why."""


def is_domain_error(error: BaseException) -> bool:
    """Whether `error` is of a class, or of a subclass of one, that Pocketrank defines."""
    return any(kind.__module__.partition(".")[0] == "pocketrank" for kind in type(error).__mro__)


@contextmanager
def exit_on_domain_error() -> Iterator[None]:
    """Turn an error of ours into one red line `error: …` on stderr and exit code 2; let any other pass."""
    try:
        yield
    except Exception as error:
        if not is_domain_error(error):
            raise
        line = " ".join(part.strip() for part in str(error).splitlines()) or type(error).__name__
        typer.secho(f"error: {line}", fg="red", err=True)
        raise SystemExit(_WRONG_INPUT) from None
