"""`pocketrank evaluate`: how well a run orders the rows it never saw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sdk_demo.cli.output import JsonTarget

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that `pocketrank train` wrote.")],
    json: Annotated[str | None, typer.Option(help="File for the report; `-` prints it to stdout.")] = None,
) -> None:
    """Measure every model of a run on the days held out.

    All models are measured on the same rows: the server's score alone, the device model without feedback, self-contained, and
    split. Figures are means over the run's seeds; `*_std` is their spread.

    \b
    pocketrank evaluate runs/world
    pocketrank evaluate runs/world --json report.json

    Writes a table to the terminal and, with --json, `models.MODEL.TASK.auc` and `auc_std`.
    """
    target = JsonTarget(json)

    from cloud.training.evaluate import evaluate as evaluate_run

    report = evaluate_run(run)
    target.write(report)
    _print(target.console, report)


def _print(console: Console, report: Mapping[str, Any]) -> None:
    data, seeds = report["data"], len(report["seeds"])
    simulated = "simulated, " if data["simulated"] else ""
    title = f"AUC on {data['test_rows']} held-out rows of {data['name']} ({simulated}from {data['test_from']}), {seeds} seeds"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    for task in next(iter(report["models"].values())):
        table.add_column(task.replace("_", " "), justify="right")
    for name, tasks in report["models"].items():
        table.add_row(name, *(_cell(task["auc"], task["auc_std"]) for task in tasks.values()))
    console.print(table)


def _cell(auc: float | None, spread: float | None) -> str:
    if auc is None:
        return "one label only"
    return f"{auc:.4f}" if spread is None else f"{auc:.4f}\n± {spread:.4f}"
