"""`pocketrank log`: what a server collected."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pocketrank.sdk_demo.cli.errors import OptionError

__all__ = ["export", "log"]

log = typer.Typer(name="log", no_args_is_help=True, rich_markup_mode=None)
"""The commands on the topics of a server."""


@log.callback()
def _log() -> None:
    """Use what a server collected: the pages that it served, and what users did.

    \b
    pocketrank log export runs/world --out logs/collected
    pocketrank train --data logs/collected --out runs/next

    Writes a log.
    """


@log.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `pocketrank train` wrote, and that is served.")],
    out: Annotated[Path, typer.Option(help="Folder for the log. One that is there is replaced.")],
    feedback_db: Annotated[
        Path | None, typer.Option(help="File of the server's feedback log. [default: feedback.db in the folder of RUN]")
    ] = None,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Report as JSON; `-` is stdout.")] = None,
) -> None:
    """Make a log to train on of the pages that were served and the feedback on them.

    It has all impressions with their labels and the signals of devices, the candidates of their pages and the scores that they
    were served with, and the items of the run with those that were put since. An impression whose page is not known is in it,
    without the page; one of an unknown item is not, and is counted. `train` makes the next run of it.

    An export that was stopped goes on where it was, with a file of gathered records beside --out.

    \b
    pocketrank log export runs/world --out logs/collected
    pocketrank train --data logs/collected --out runs/next

    Writes the log and, with --json, the report.
    """
    from contextlib import ExitStack, closing
    from dataclasses import asdict

    from pocketrank.cloud.data.export_log import export_log
    from pocketrank.cloud.pages.own_ids import OwnIds
    from pocketrank.cloud.published.id_texts import PublishedIds
    from pocketrank.cloud.published.published import Published
    from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
    from pocketrank.cloud.streams.sqlite_events import SqliteEventLog, SqliteEventsConfig
    from pocketrank.cloud.training.run import Run
    from pocketrank.sdk_demo.cli.output import JsonTarget, print_line
    from pocketrank.sdk_demo.cli.stages import stages

    target = JsonTarget(json)
    opened = Run.open(run)
    published, record = Published.open(opened.published)
    ids = PublishedIds.open(opened.published)
    path = feedback_db or run / "feedback.db"
    if not path.is_file():
        raise OptionError("--feedback-db", "the file of a feedback log", str(path))
    feedback = SqliteFeedbackLog(path, SqliteLogConfig(keep_days=None))
    keep_all = SqliteEventsConfig(retention={})
    with ExitStack() as stack:
        stack.enter_context(closing(feedback))
        events = stack.enter_context(closing(SqliteEventLog(feedback.events or path, feedback, keep_all)))
        own = stack.enter_context(closing(OwnIds(ids, feedback.ids)))
        report = stack.enter_context(stages(target.console))
        written, counts = export_log(
            events,
            published,
            record,
            out,
            name=out.name,
            ids=ids,
            grown=own.grown(),
            weights=opened.record.spec.task_weights,
            report=lambda share: report("export", share),
        )
    target.write({"log": out, "digest": written.digest(), "items": len(written.items)} | asdict(counts))
    print_line(target.console, f"{counts.impressions} impressions of {counts.pages} pages written to {out}")
    if counts.unknown_items:
        print_line(target.console, f"{counts.unknown_items} impressions of unknown items were left out")
    print_line(target.console, f"next: pocketrank train --data {out} --out runs/next")
