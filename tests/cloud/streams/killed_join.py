"""Joins whose processes are killed: `python -m tests.cloud.streams.killed_join FOLDER KILLS SEED`.

Goes on until so many of them had joined something. Prints their number, and how many records were left for the last one, which
is not killed.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from pocketrank.cloud.streams.event_log import EventLog
from pocketrank.cloud.streams.join import CONSUMER, Join, JoinConfig
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog, SqliteEventsConfig

CONFIG = JoinConfig(actions=("buy",), negatives=0.5, in_memory=5, pages_bytes=2000)
EVENTS = SqliteEventsConfig(busy_s=0.1)
RECORDS = 1


@contextmanager
def opened_log(folder: Path) -> Iterator[EventLog]:
    """Open the event log in a folder."""
    with ExitStack() as stack:
        feedback = stack.enter_context(closing(SqliteFeedbackLog(folder / "feedback.db")))
        yield stack.enter_context(closing(SqliteEventLog(folder / "events.db", feedback, EVENTS)))


def duration(item_id: int) -> int | None:
    """Return the duration of an item in milliseconds."""
    return 10_000 if item_id % 3 else None


def join_all(folder: Path, *, records: int = RECORDS, begun: Connection | None = None) -> int:
    """Join what is in the log; return the number of records. `begun` is told of the first step."""
    total = 0
    with opened_log(folder) as log, closing(opened_join(folder, log, records=records)) as join:
        while read := join.step():
            total += read
            if begun is not None and total == read:
                begun.send(read)
    return total


def opened_join(folder: Path, log: EventLog, *, records: int = RECORDS, idle_ms: int | None = None) -> Join:
    """Open the join of the log in a folder."""
    return Join(log, folder / "join.db", duration, CONFIG, records=records, idle_ms=idle_ms)


def _batches(folder: Path) -> int:
    with opened_log(folder) as log:
        return dict(log.committed(CONSUMER).get("samples", {})).get(0, 0)


if __name__ == "__main__":
    folder, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), Random(int(sys.argv[3]))
    joined, process = 0, get_context("fork")
    for _ in range(10 * kills):
        if joined == kills:
            break
        before = _batches(folder)
        told, begun = process.Pipe(duplex=False)
        child = process.Process(target=join_all, args=(folder,), kwargs={"begun": begun})
        child.start()
        if rng.random() < 0.8:  # else it may be killed before its first step
            told.poll(10)
        child.join(rng.uniform(0.0, 0.006))
        child.kill()
        child.join()
        joined += _batches(folder) > before
    print(joined, join_all(folder))
