"""`pocketrank forget`: deletes what a user's devices sent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pocketrank.sdk_demo.cli.errors import OptionError

__all__ = ["forget"]


def forget(
    user: Annotated[str, typer.Argument(metavar="USER", help="Id of the user, as the team has it.")],
    run: Annotated[
        Path | None, typer.Option(help="Folder that `pocketrank train` wrote. Either this or --runs is required.")
    ] = None,
    runs: Annotated[
        str | None,
        typer.Option(help="Folder of runs, or `mlflow:URI`, whose active run is served (`pocketrank serve --runs`)."),
    ] = None,
    feedback_db: Annotated[
        Path | None, typer.Option(help="File of the feedback log. [default: feedback.db in the folder of --run or --runs]")
    ] = None,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Report as JSON; `-` is stdout.")] = None,
) -> None:
    """Delete a user's events from the feedback log of a run or of a folder of runs, and from the snapshot of users' states
    beside it. Where ids of users are texts, that of the user is deleted from the file of ids beside the log, too.

    Pages that were served to the user, and samples made of them, are deleted from the event log beside it; a process that
    learns drops the user's row, and what it publishes next says so.

    In the log they are overwritten on the disk, and servers that have the log open drop what they know of them with their next
    page; a ranking that is kept for pages without time expires after `[cache] ttl_s`. What was published with the run remains
    until the next training: the command says how much that is. Leave the user out of the data of that training. Events that a
    device of the user sends later are accepted again.

    \b
    pocketrank forget 4711 --run runs/world
    pocketrank forget 4711 --runs runs
    pocketrank forget 4711 --run runs/world --feedback-db /data/feedback.db --json -

    Writes the feedback log, its snapshot, the event log and, with --json, the report.
    """
    from contextlib import closing

    from pocketrank.cloud.pages.own_ids import OwnIds
    from pocketrank.cloud.pages.state_snapshot import StateSnapshot
    from pocketrank.cloud.published.id_texts import PublishedIds
    from pocketrank.cloud.published.ids import IdLookup
    from pocketrank.cloud.published.published import Published
    from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
    from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
    from pocketrank.cloud.training.registry_opening import open_registry
    from pocketrank.cloud.training.run import Run
    from pocketrank.sdk_demo.cli.output import JsonTarget, print_line

    target = JsonTarget(json)
    if (run is None) == (runs is None):
        raise OptionError("--run", "either --run RUN or --runs FOLDER", "neither" if run is None else "both")
    if run is not None:
        opened, folder = Run.open(run), run
    else:
        registry = open_registry(runs or "")
        active = registry.active()
        if active is None:
            raise OptionError("--runs", "runs of which one is active (`pocketrank runs activate`)", runs or "")
        opened, folder = registry.open(active.run), registry.folder
    published, _ = Published.open(opened.published)
    ids = PublishedIds.open(opened.published)
    is_text = "user_id" in ids.kinds
    code = _code(user, is_text)
    path = feedback_db or folder / "feedback.db"
    if not path.is_file():
        raise OptionError("--feedback-db", "the file of a feedback log", str(path))
    with closing(SqliteFeedbackLog(path, SqliteLogConfig(keep_days=None))) as log, closing(OwnIds(ids, log.ids)) as own:
        if is_text:
            code = own.code("user_id", user)
        forgotten = log.forget(code)
        with closing(SqliteEventLog(log.events, log)) as events:
            records = events.forget(code)
        StateSnapshot(log.derived).forget(code)  # after the log: a server may just be writing what it knew before
        own.forget("user_id", user)
    at = IdLookup(published.user_id).one(code)
    history = int((published.history_item[at] > 0).sum()) if at else 0
    target.write(
        {
            "user_id": user if is_text else code,
            "feedback_log": path,
            "events_deleted": forgotten.events,
            "records_deleted": records,
            "records_unassigned": forgotten.unassigned,
            "published_user": at > 0,
            "published_events": history,
        }
    )
    console = target.console
    print_line(console, f"user {user}: {forgotten.events} events deleted from {path}")
    print_line(console, f"and {records} records of pages served and samples beside it")
    if forgotten.unassigned:
        print_line(console, f"{forgotten.unassigned} damaged records remain in the log; nobody can say whose they are")
    if at:
        remains = f"the user's rows and {history} events of the published history in {opened.published}"
        print_line(console, f"remain until the next training: {remains}")


def _code(user: str, is_text: bool) -> int:
    """Return the code of a whole number. Raises `OptionError` for an id that is none of the run's kind."""
    from pocketrank.device.contract import ContractError, as_code

    try:
        code = as_code(user) if is_text else int(user)
    except ContractError as error:
        raise OptionError("USER", error.expected, error.got) from None
    except ValueError:
        raise OptionError("USER", "a whole number, as all ids of the run's users are", user[:60]) from None
    if not -(1 << 63) <= code < 1 << 63:
        raise OptionError("USER", "an id of 64 bits", user[:60])
    return code
