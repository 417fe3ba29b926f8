"""How many events a second the join takes, alone and with the event log.

`python -m benchmarks.join --json FILE`. Pages have the candidates and the history of a served page; a user is shown the first
ones of each, and `has_next` is a label, so that nearly each event also corrects the sample before.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, process_time
from typing import Any

import numpy as np

from benchmarks.command import command_parser, count, from_options, one_line_errors
from pocketrank.cloud.streams.event_log import EventLog, NewRecord, Record
from pocketrank.cloud.streams.join import Join, JoinConfig
from pocketrank.cloud.streams.join_state import JoinState
from pocketrank.cloud.streams.messages import ServedInputs, ServedPage
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import FeedbackEvent
from pocketrank.sdk_demo.cli.output import JsonTarget, print_report

__all__ = ["JoinExtent", "main", "measure_join"]

_NOW_MS = 1_790_000_000_000
_DURATION_MS = 20_000


@dataclass(frozen=True)
class JoinExtent:
    """Extent of the measurement."""

    pages: int = 2000
    """Pages that are served, to as many users in turn as `users`."""
    users: int = 500
    shown: int = 10
    """Candidates of each page that are shown: its events."""
    candidates: int = 60
    """Candidates of a page."""
    tasks: int = 8
    """Scores of a candidate."""
    statistics: int = 20
    """Features of the moment of a candidate."""
    history: int = 50
    """Events of the history of a page."""
    seed: int = 0
    """Seed of ids and numbers."""


def measure_join(extent: JoinExtent = JoinExtent()) -> dict[str, Any]:
    """Return events a second of the state in memory (`state`) and of the process with its log and file (`process`), both by
    wall time and, as `process_per_cpu_s`, by the time of the processor; samples a second; and the samples of an event."""
    made = list(_pages(extent))
    alone = _alone(extent, made)
    with TemporaryDirectory(prefix="pocketrank-") as folder:
        return alone | _with_log(Path(folder), extent, made)


def _pages(extent: JoinExtent) -> list[tuple[ServedPage, list[FeedbackEvent]]]:
    rng, made = np.random.default_rng(extent.seed), []
    for number in range(extent.pages):
        user = 1 + number % extent.users
        items = rng.choice(1 << 40, extent.candidates, replace=False)
        page = ServedPage(
            page_id=f"{number:032x}",
            session_id=f"session-{user}",
            served_ms=_NOW_MS + number,
            run="run",
            inputs=ServedInputs(
                user_id=user,
                scene=0,
                hour=12,
                history_item=rng.integers(1, 1 << 40, extent.history).astype("<i8").tobytes(),
                history_feedback=rng.random((extent.history, 5), np.float32).tobytes(),
            ),
            item_id=items.astype("<i8").tobytes(),
            pxtr=rng.random((extent.candidates, extent.tasks), np.float32).tobytes(),
            score=rng.random(extent.candidates, np.float32).tobytes(),
            statistics=rng.random((extent.candidates, extent.statistics), np.float32).tobytes(),
        )
        events = [
            FeedbackEvent(
                event_id=f"{number:028x}{place:04x}",
                user_id=user,
                session_id=page.session_id,
                item_id=int(item),
                position=number // extent.users * extent.shown + place,
                impression_ms=_NOW_MS + number,
                watch_ms=int(rng.integers(0, 30_000)),
                page_id=page.page_id,
            )
            for place, item in enumerate(items[: extent.shown])
        ]
        made.append((page, events))
    return made


def _alone(extent: JoinExtent, made: Sequence[tuple[ServedPage, list[FeedbackEvent]]]) -> dict[str, Any]:
    pages = [Record(p.inputs.user_id, to_msgpack(p), _NOW_MS + i, 0, i) for i, (p, _) in enumerate(made)]
    feedback = [[Record(e.user_id, to_msgpack(e), _NOW_MS + i, 0, 0) for e in events] for i, (_, events) in enumerate(made)]
    state = JoinState(JoinConfig(), lambda item: _DURATION_MS, lambda partition, offset: pages[offset].value)
    samples, start = 0, monotonic()
    for page, events in zip(pages, feedback, strict=True):
        state.page(page)
        for event in events:
            state.event(event)
        samples += len(state.take())
    took = monotonic() - start
    return {"state": {"events_per_s": state.counts.events / took, "samples_per_s": samples / took}}


def _with_log(folder: Path, extent: JoinExtent, made: Sequence[tuple[ServedPage, list[FeedbackEvent]]]) -> dict[str, Any]:
    with (
        closing(SqliteFeedbackLog(folder / "feedback.db")) as feedback,
        closing(SqliteEventLog(folder / "events.db", feedback)) as log,
    ):
        for start in range(0, len(made), 100):
            part = made[start : start + 100]
            log.append("pages", [NewRecord(page.inputs.user_id, to_msgpack(page)) for page, _ in part])
            feedback.append([event for _, events in part for event in events])
        with closing(Join(log, folder / "join.db", lambda item: _DURATION_MS)) as join:
            began, cpu = monotonic(), process_time()
            while join.step():
                pass
            took, used = monotonic() - began, process_time() - cpu
        counts = join.counts
        return {
            "process": {"events_per_s": counts.events / took, "samples_per_s": counts.samples / took},
            "process_per_cpu_s": {"events_per_s": counts.events / used, "samples_per_s": counts.samples / used},
            "events": counts.events,
            "samples_per_event": counts.samples / counts.events,
            "samples_in_log": _samples(log),
        }


def _samples(log: EventLog) -> int:
    total, part = 0, log.read("samples", {})
    while part.records:
        total += len(part.records)
        part = log.read("samples", part.offsets)
    return total


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = command_parser("join", "Count the events a second that the join of feedback with pages takes.")
    parser.add_argument("--pages", type=count, default=JoinExtent.pages, help="pages that are served (default: %(default)s)")
    parser.add_argument("--users", type=count, default=JoinExtent.users, help="users in turn (default: %(default)s)")
    parser.add_argument("--shown", type=count, default=JoinExtent.shown, help="events of a page (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=JoinExtent.seed, help="of ids and numbers (default: %(default)s)")
    options = parser.parse_args(arguments)
    target = JsonTarget(options.json)
    report = measure_join(from_options(JoinExtent, options))
    rows = ("state", "process", "process_per_cpu_s")
    shown = {"join": {name: report[name] for name in rows}, **{k: v for k, v in report.items() if k not in rows}}
    print_report(target.console, shown, rows="join", title="the join of feedback with pages as served")
    target.write(report)


if __name__ == "__main__":
    sys.exit(main())
