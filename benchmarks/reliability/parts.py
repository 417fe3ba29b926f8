"""Common parts of both sides of `benchmarks.reliability`: one part is measured after the other, sums of figures on top."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.command import figure_table
from pocketrank.sdk_demo.cli.output import progress

__all__ = ["Part", "cell", "headline_table", "measure_parts"]


class Part(NamedTuple):
    """A part of the benchmark."""

    text: str
    """Text of its progress bar."""
    measure: Callable[[Path, Namespace, Callable[[float], None]], dict[str, Any]]
    """Takes an empty folder, the command's options, and a function that takes the share done; returns the figures."""
    key: str | None = None
    """Its key in the report, where that is not its name."""
    own: tuple[str, ...] = ()
    """Figures that have a headline's name and do not count towards it."""


def measure_parts(parts: Mapping[str, Part], headlines: Sequence[str], options: Namespace, console: Console) -> dict[str, Any]:
    """Measure those of `parts` that `options.only` names, all without it; return the headlines and the figures of each part.

    A headline is the sum of the figure of that name of all parts that have it. Raises `BenchmarkError`.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, part in parts.items():
        if name in (options.only or parts):
            with TemporaryDirectory(prefix="pocketrank-") as work, progress(console, part.text) as update:
                found[name] = part.measure(Path(work), options, update)
    report: dict[str, Any] = {}
    for headline in headlines:
        values = [f[headline] for name, f in found.items() if headline in f and headline not in parts[name].own]
        if values:
            report[headline] = values[0] if len(values) == 1 else sum(values)  # one that is alone may be None
    return report | {parts[name].key or name: figures for name, figures in found.items()}


def headline_table(title: str, headlines: Sequence[str], report: Mapping[str, Any]) -> Table:
    """Return a table of the `headlines` that the report has."""
    table = figure_table(title, "")
    for name in headlines:
        if name in report:
            table.add_row(name.replace("_", " "), cell(report[name]))
    return table


def cell(value: object) -> str:
    """Return a figure as a table shows it."""
    return f"{value:.3g}" if isinstance(value, float) else "none" if value is None else str(value)
