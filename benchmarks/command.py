"""Common parts of the benchmarks' command lines: options, tables, and errors as one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.errors import BenchmarkError
from pocketrank.sdk_demo.cli.errors import is_domain_error

__all__ = ["command_parser", "count", "figure_table", "from_options", "make_work_folder", "one_line_errors", "span"]

_WRONG_INPUT = 2

T = TypeVar("T")


def one_line_errors(main: Callable[[Sequence[str] | None], None]) -> Callable[..., int]:
    """Make `main` return the exit code 0, or report an error of ours as one line `error: …` on stderr with exit code 2.

    Other errors keep a traceback.
    """

    @wraps(main)
    def wrapped(arguments: Sequence[str] | None = None) -> int:
        try:
            main(arguments)
            return 0
        except Exception as error:
            if not (isinstance(error, BenchmarkError) or is_domain_error(error)):
                raise
            print(f"error: {error}", file=sys.stderr)
            return _WRONG_INPUT

    return wrapped


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of `python -m benchmarks.NAME`, which has the option `--json`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="file for the report; - prints it to stdout")
    return parser


def count(text: str) -> int:
    """Parse an option's value that must be 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a count from 1, got {number}")
    return number


def from_options(kind: Callable[..., T], options: argparse.Namespace) -> T:
    """Return a `kind` with those of its fields that `options` has; the others are the default ones."""
    return kind(**{name: getattr(options, name) for name in signature(kind).parameters if hasattr(options, name)})


def make_work_folder(folder: Path) -> None:
    """Make the folder of `--work`, where finished parts are kept. Raises `BenchmarkError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchmarkError(str(folder), "a folder to work in", error.strerror or str(error)) from error


def figure_table(title: str, *columns: str, label: str = "") -> Table:
    """Return an empty table whose first column, headed `label`, names the row, and whose other `columns` hold figures."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column(label, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def span(figure: Mapping[str, Any] | None, form: str, missing: str) -> str:
    """Return a figure and its interval as text, or `missing` where there is none."""
    if figure is None or figure["mean"] is None:
        return missing
    low, high = figure["ci95"]
    return f"{figure['mean']:{form}} ({low:{form}} to {high:{form}})"
