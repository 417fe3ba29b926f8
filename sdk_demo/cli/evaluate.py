"""`pocketrank evaluate`: metrics of a run's models on the held-out days, alone or beside another run's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pocketrank.sdk_demo.cli.output import JsonTarget, check_file, print_line, write_file

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
    other: Annotated[
        Path | None, typer.Argument(help="Another run of the same data and test days, which is compared with the first.")
    ] = None,
    json: Annotated[str | None, typer.Option(help="File for the report; `-` prints it to stdout.")] = None,
    page: Annotated[Path | None, typer.Option(help="HTML file for a report with plots; needs the extra `demo`.")] = None,
) -> None:
    """Measure every model of a run on the held-out days, or compare two runs.

    All models are measured on the same rows: the server's score alone, the device model without feedback, self-contained, and
    split. Metrics are means over the run's seeds; `*_std` is their standard deviation. GAUC is the AUC within each user,
    weighted by impressions; nDCG is that of the lists; ECE, the expected calibration error, and predicted/observed show how
    well the scores are calibrated as probabilities. GAUC and nDCG treat rows that were scored at different moments as one
    ranking, which penalises a model that follows the session; the other metrics do not.

    With OTHER, both runs are measured on the same rows, and the difference OTHER - RUN of each metric has a 95 % interval: a
    paired bootstrap over users, and over the trainings of a run with several seeds. An interval without 0 is marked with *.

    \b
    pocketrank evaluate runs/world
    pocketrank evaluate runs/world runs/wider --json report.json
    pocketrank evaluate runs/world --page report.html

    Writes a table for each task to the terminal and, with --json, `models.MODEL.TASK` with `auc`, `gauc`, `ndcg` and `logloss`,
    each with its `_std`, `ece` and `predicted_over_observed`. Of two runs, `models.MODEL.TASK` has these in `a` and `b`, and
    `mean` and `ci95` of each metric in `difference`. With --page, writes one HTML file with the metrics, training curves,
    calibration, the models' AUC by seed, day and the user's history, and the configuration.
    """
    target = JsonTarget(json)
    if page is not None:
        check_file("--page", page)
    comparison = None
    if other is None:
        from pocketrank.cloud.training.evaluate import evaluate as evaluate_run

        report = evaluate_run(run)
        target.write(report)
        _print(target.console, report)
    else:
        from pocketrank.cloud.training.compare import compare

        comparison = compare(run, other)
        target.write(comparison)
        _print_comparison(target.console, comparison)
    if page is not None:
        from pocketrank.cloud.training.breakdown import breakdown
        from pocketrank.cloud.training.run import Run
        from pocketrank.sdk_demo.report.run_page import run_page

        text = run_page(breakdown(run), Run.open(run).record, comparison)
        write_file("--page", page, text.encode())
        print_line(target.console, f"page written to {page}")


def _print(console: Console, report: Mapping[str, Any]) -> None:
    _print_title(console, report["data"], f"{len(report['seeds'])} seeds")
    for task in next(iter(report["models"].values())):
        table = _table(task, "model", *_HEADINGS.values())
        for name, tasks in report["models"].items():
            table.add_row(name, *(_cell(tasks[task], metric) for metric in _HEADINGS))
        console.print(table)


def _print_comparison(console: Console, report: Mapping[str, Any]) -> None:
    interval, runs = report["interval"], report["runs"]
    seeds = " and ".join(str(len(run["seeds"])) for run in runs.values())
    _print_title(console, report["data"], f"{seeds} seeds, {interval['users']} users")
    for name, run in runs.items():
        missing = f" (not compared: {', '.join(run['models'])})" if run["models"] else ""
        print_line(console, f"{name}: {run['folder']}{missing}")
    for task in next(iter(report["models"].values())):
        metrics = next(iter(report["models"].values()))[task]["difference"]
        table = _table(task, "model", "", *(_HEADINGS[metric] for metric in metrics))
        for name, tasks in report["models"].items():
            for side in runs:
                table.add_row(name if side == "a" else "", side, *(_cell(tasks[task][side], metric) for metric in metrics))
            table.add_row("b - a", "", *map(_difference, tasks[task]["difference"].values()), end_section=True)
        console.print(table)
    print_line(console, f"b - a with its interval, * where it excludes 0: {interval['method']}, {interval['resamples']} times")


def _print_title(console: Console, data: Mapping[str, Any], scope: str) -> None:
    simulated = "simulated, " if data["simulated"] else ""
    print_line(console, f"{data['test_rows']} held-out rows of {data['name']} ({simulated}from {data['test_from']}), {scope}")


def _table(task: str, first: str, *headings: str) -> Table:
    table = Table(title=task.replace("_", " "), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cell(task: Mapping[str, float | None], metric: str) -> str:
    mean, spread = task[metric], task.get(f"{metric}_std")
    if mean is None:
        return "n/a"
    return f"{mean:.4f}" if spread is None else f"{mean:.4f}\n± {spread:.4f}"


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "n/a"
    low, high = difference["ci95"]
    mark = " *" if low > 0 or high < 0 else ""
    return f"{difference['mean']:+.4f}{mark}\n{low:+.4f} to\n{high:+.4f}   "
