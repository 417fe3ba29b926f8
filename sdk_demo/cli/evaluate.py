"""`pocketrank evaluate`: metrics of a run's models on the held-out days."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pocketrank.sdk_demo.cli.output import JsonTarget, print_line

__all__ = ["evaluate"]

_HEADINGS = {
    "auc": "AUC",
    "gauc": "GAUC",
    "ndcg": "nDCG@10",
    "logloss": "log loss",
    "ece": "ECE",
    "predicted_over_observed": "predicted/\nobserved",
}
"""Metrics and their headings. With the spread below its mean, a table fits into 80 columns."""


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that `pocketrank train` wrote.")],
    json: Annotated[str | None, typer.Option(help="File for the report; `-` prints it to stdout.")] = None,
) -> None:
    """Measure every model of a run on the held-out days.

    All models are measured on the same rows: the server's score alone, the device model without feedback, self-contained, and
    split. Metrics are means over the run's seeds; `*_std` is their standard deviation. GAUC is the AUC within each user,
    weighted by impressions; nDCG is that of the lists; ECE, the expected calibration error, and predicted/observed show how
    well the scores are calibrated as probabilities. GAUC and nDCG treat rows that were scored at different moments as one
    ranking, which penalises a model that follows the session; the other metrics do not.

    \b
    pocketrank evaluate runs/world
    pocketrank evaluate runs/world --json report.json

    Writes a table for each task to the terminal and, with --json, `models.MODEL.TASK` with `auc`, `gauc`, `ndcg` and `logloss`,
    each with its `_std`, `ece` and `predicted_over_observed`.
    """
    target = JsonTarget(json)

    from pocketrank.cloud.training.evaluate import evaluate as evaluate_run

    report = evaluate_run(run)
    target.write(report)
    _print(target.console, report)


def _print(console: Console, report: Mapping[str, Any]) -> None:
    data, seeds, models = report["data"], len(report["seeds"]), report["models"]
    simulated = "simulated, " if data["simulated"] else ""
    title = f"{data['test_rows']} held-out rows of {data['name']} ({simulated}from {data['test_from']}), {seeds} seeds"
    print_line(console, title)
    for task in next(iter(models.values())):
        table = Table(title=task.replace("_", " "), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("model", no_wrap=True)
        for heading in _HEADINGS.values():
            table.add_column(heading, justify="right", no_wrap=True)
        for name, tasks in models.items():
            table.add_row(name, *(_cell(tasks[task], metric) for metric in _HEADINGS))
        console.print(table)


def _cell(task: Mapping[str, float | None], metric: str) -> str:
    mean, spread = task[metric], task.get(f"{metric}_std")
    if mean is None:
        return "n/a"
    return f"{mean:.4f}" if spread is None else f"{mean:.4f}\n± {spread:.4f}"
