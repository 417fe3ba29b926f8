"""`pocketrank learn`: join, trainer and publisher beside a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pocketrank.sdk_demo.cli.errors import OptionError

if TYPE_CHECKING:
    from pocketrank.cloud.training.learning import Part, Progress

__all__ = ["learn"]


def learn(
    run: Annotated[Path, typer.Option(help="Folder that `pocketrank train` wrote, and that is served.")],
    feedback_db: Annotated[
        Path | None, typer.Option(help="File of the server's feedback log. [default: feedback.db in the folder of --run]")
    ] = None,
    only: Annotated[
        Literal["join", "train"] | None, typer.Option(help="Run one part in this process, and the other one in another.")
    ] = None,
    publish_s: Annotated[float, typer.Option(min=0.05, max=60, help="Seconds between two increments of the parameters.")] = 1.0,
    snapshot_s: Annotated[float, typer.Option(min=1, help="Seconds between two snapshots of all that was learned.")] = 3600.0,
    optimizer: Annotated[Literal["adagrad", "ftrl"], typer.Option(help="How rows are updated.")] = "adagrad",
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="Learning rate of the rows.")] = 0.05,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of Prometheus metrics on 127.0.0.1. [default: none]")
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Counters as JSON at the end; `-` is stdout.")
    ] = None,
) -> None:
    """Learn from what users do on the pages of a running server, until interrupted.

    Feedback is joined with the pages as they were served. Each sample trains the rows of its item and its user, on top of the
    run, whose dense layers stand still. What changed is published every second, and the server has it between two pages. All
    that was learned, and the places up to which it was read, are in files beside the feedback log: a process that is killed
    goes on where it was.

    Where what is predicted is not what is observed, the rows go back to what they were, and nothing is learned until it is.

    \b
    pocketrank serve --run runs/world --port 8080
    pocketrank learn --run runs/world

    \b
    pocketrank serve --run runs/world --learn        # both in one command

    Writes the files of the event log beside the feedback log and, with --json, the counters.
    """
    import os
    import signal
    from threading import Event

    from pocketrank.cloud.training.increments import IncrementConfig
    from pocketrank.cloud.training.learner import LearnerConfig
    from pocketrank.cloud.training.learning import LearningConfig
    from pocketrank.cloud.training.learning import learn as run_learning
    from pocketrank.cloud.training.row_table import RowConfig
    from pocketrank.cloud.training.run import Run
    from pocketrank.sdk_demo.cli.learning_report import LearningReport
    from pocketrank.sdk_demo.cli.output import JsonTarget

    target, opened = JsonTarget(json), Run.open(run)
    rows = RowConfig(optimizer=optimizer, learning_rate=learning_rate)
    learner = LearnerConfig(IncrementConfig(rows, rows), publish_s=publish_s, snapshot_s=snapshot_s)
    path = feedback_db or run / "feedback.db"
    if not path.parent.is_dir():
        raise OptionError("--feedback-db", "a file in a folder that exists", str(path))
    stop, parent = Event(), os.getppid() if os.environ.get("POCKETRANK_PARENT") else None
    report = LearningReport(target.console, metrics_port)

    def watch(progress: Progress) -> None:
        report(progress)
        if parent is not None and os.getppid() != parent:  # the server that started it was killed
            stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    parts: tuple[Part, ...] = ("join", "train") if only is None else (only,)
    run_learning(opened, path, stop=stop, parts=parts, config=LearningConfig(learner=learner), watch=watch)
    target.write(report.last)
