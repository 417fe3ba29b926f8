"""The output of a command: a JSON report, a table, a progress bar.

Tables and progress go to stderr when the report goes to stdout, so that the output of `--json -` can be piped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pocketrank.cloud.files import write_atomically
from pocketrank.sdk_demo.cli.errors import OutputError

__all__ = ["JsonTarget", "check_file", "flatten", "print_line", "print_report", "progress", "write_file"]


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"Expected a plain value, got {type(value).__name__} - at the report")


class JsonTarget:
    """The destination of `--json`: a file, stdout (`-`), or nothing (None).

    The destination is checked on construction, so that a long command fails before its work and not after it. Raises
    `OutputError`.
    """

    def __init__(self, text: str | None) -> None:
        self.to_stdout = text == "-"
        self.path = None if text is None or self.to_stdout else Path(text).expanduser()
        if self.path is not None:
            check_file("--json", self.path)

    @property
    def console(self) -> Console:
        """The console for everything except the report."""
        return Console(stderr=self.to_stdout)

    def write(self, report: Mapping[str, Any]) -> None:
        """Write `report` as indented JSON, with NaN as null. The file is written whole or not at all. Raises `OutputError`."""
        text = msgspec.json.format(msgspec.json.encode(report, enc_hook=_plain), indent=2) + b"\n"
        if self.to_stdout:
            sys.stdout.write(text.decode())
        elif self.path is not None:
            write_file("--json", self.path, text)


def check_file(option: str, path: Path) -> None:
    """Make the folder of a file that `option` names, before the work. Raises `OutputError` if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{option}: cannot make the folder `{path.parent}`: {error.strerror}") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise OutputError(f"{option}: expected a file that can be written, got `{path}`")


def write_file(option: str, path: Path, data: bytes) -> None:
    """Write a file that `option` names whole or not at all. Raises `OutputError`."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OutputError(f"{option}: cannot write `{path}`: {error.strerror}") from None


def flatten(report: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings under dotted names: `{"like": {"auc": .8}}` becomes `{"like.auc": .8}`."""
    leaves: dict[str, Any] = {}
    for name, value in report.items():
        if isinstance(value, Mapping):
            leaves.update(flatten(value, f"{prefix}{name}."))
        else:
            leaves[prefix + name] = value
    return leaves


def _cell(value: object) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(part) for part in value)
    return "" if value is None else str(value)


def print_line(console: Console, text: str) -> None:
    """Print `text` as it is: rich neither interprets nor colours nor wraps it."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_report(console: Console, report: Mapping[str, Any], *, rows: str, title: str) -> None:
    """Print `report[rows]`, which maps a row's name to its figures, as a table, and the other leaves below it.

    A report without the entry `rows` is printed as leaves only.
    """
    body: Mapping[str, Any] = report.get(rows, {})
    flat = {name: flatten(row) for name, row in body.items()}
    columns = list(dict.fromkeys(column for row in flat.values() for column in row))
    if columns:
        table = Table(title=title, title_justify="left")
        table.add_column(rows, no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right")
        for name, row in flat.items():
            table.add_row(name, *(_cell(row.get(column)) for column in columns))
        console.print(table)
    for name, value in flatten({key: value for key, value in report.items() if key != rows}).items():
        print_line(console, f"{name}: {_cell(value)}")


@contextmanager
def progress(console: Console, description: str) -> Iterator[Callable[[float], None]]:
    """Show a progress bar while the block runs. The value is a function that takes the share done, 0..1."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(description, total=1.0)
        yield lambda share: bars.update(task, completed=share)
        bars.update(task, completed=1.0)
