"""`pocketrank evaluate`: how well a run orders the rows it never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdk_demo.cli.output import JsonTarget, print_report

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
    print_report(target.console, report, rows="models", title=f"{run}: held-out rows")
