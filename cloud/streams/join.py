"""Joins feedback with the page as served, and sends a sample as soon as its consumption is known to be over.

This is what every implementation of the join does (`join_all` does it at once, for tests):

- An event belongs to the candidate of its item on the page that it names. Events without a page, or of an item that the page
  does not have, make no sample; they are counted.
- Several events of one candidate are one consumption: it was watched for as long as the longest says, and has every action that
  any of them has. An event that changes nothing, such as a duplicate, has no effect. A change after a sample was sent corrects
  it: the next revision has all labels, and names those of before.
- Labels follow from watch and duration by the same thresholds as the histories of users (`EFFECTIVE_VIEW_MS`, `LONG_VIEW_MS`).
- `has_next` is true once the session has an impression at a later position, and false when the event says that the user left,
  or after `session_ms` without a later one. It comes as a correction, because all else is known before it.
- Events may come before their page, for up to `wait_ms`, and up to `late_ms` after it. Time is that at which records were
  appended to the log, of the newest that was read, and no device's. What an event is dated is only handed on.
- A forgotten user's pages and events are dropped.

The result does not depend on the order in which records of the two topics are read.

`Join` keeps its state in an SQLite file of its own: places of pages in the log, what was sent of each, and sessions. Each step
is one transaction there, which also holds the samples that the step made. They are committed to the event log, with the places
up to which topics were read, right after it. A process that was killed between the two repeats the second. So no sample is lost
or sent twice.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from time import time

import msgspec
import numpy as np

from pocketrank.cloud.streams.event_log import EventLog, NewRecord, Offsets, Record, Topic
from pocketrank.cloud.streams.feedback_log import LoggedEvent
from pocketrank.cloud.streams.messages import Sample, ServedPage
from pocketrank.cloud.streams.sqlite_file import OpenedFile
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import EFFECTIVE_VIEW_MS, LONG_VIEW_MS, ContractError, Ended

__all__ = ["CONSUMER", "HAS_NEXT", "Join", "JoinConfig", "JoinCounts", "joined_labels", "labels_of"]

CONSUMER = "join"
"""Name under which the join's places are committed."""
HAS_NEXT = "has_next"
_ACTIONS = ("click", "like", "follow", "comment", "share", "profile_enter", "dislike")
_LEFT = (Ended.EXIT, Ended.BACKGROUND)
_EXPIRE_ROWS = 500

_logger = logging.getLogger(__name__)

Durations = Callable[[int], int | None]
"""Duration of an item in milliseconds; None or 0 where it is not known."""


@dataclass(frozen=True)
class JoinConfig:
    """Waiting times and sizes."""

    has_next: bool = True
    """Whether samples have the label `has_next`. A run without this task needs no corrections for it."""
    session_ms: int = 30 * 60_000
    """Time without a further event after which a session is over."""
    wait_ms: int = 10 * 60_000
    """How long an event waits for its page."""
    late_ms: int = 25 * 3_600_000
    """How long a page waits for events."""
    records: int = 1000
    """Records of a topic that are read at a time."""
    pages_in_memory: int = 20_000
    """Pages that are kept in memory, some 4 KB each. The others are read from the log again when an event of theirs comes."""


@dataclass
class JoinCounts:
    """What a process has joined so far."""

    pages: int = 0
    events: int = 0
    samples: int = 0
    corrections: int = 0
    unchanged: int = 0
    """Events that told nothing new, such as duplicates."""
    late: int = 0
    """Events that came more than `JoinConfig.wait_ms` after their page was served."""
    without_page: int = 0
    """Events of no page, or of none that is known."""
    other_item: int = 0
    """Events of an item that their page does not have."""
    unreadable: int = 0
    forgotten: int = 0
    lag_s: float = 0.0
    """Time from when the last event was appended until its sample was."""


class _Watched(msgspec.Struct, array_like=True):
    """What is known of one candidate's consumption."""

    watch_ms: int
    actions: list[str]
    event_ms: int
    position: int
    revision: int = -1
    """Of the last sample that was sent; -1 = none."""
    labels: dict[str, bool] = {}
    """Of the last sample that was sent."""
    has_next: bool | None = None


class _Page(msgspec.Struct, array_like=True):
    """What is kept of a page."""

    partition: int
    offset: int
    user_id: int
    session_id: str
    served_ms: int
    watched: dict[int, _Watched] = {}
    """By item."""


@dataclass
class _Step:
    """What changes in one step."""

    now_ms: int
    pages: dict[str, _Page] = field(default_factory=dict)
    due: dict[tuple[str, int], None] = field(default_factory=dict)
    """Candidates of which a sample may be due, in the order of their events."""


class Join:
    """The join over the topics of `log`, with its state in the file at `path`. Call it from one thread.

    Raises `EventLogError`, and sqlite3.Error or OSError when the state cannot be opened.
    """

    def __init__(self, log: EventLog, path: Path, durations: Durations, config: JoinConfig | None = None) -> None:
        self._log, self._durations, self._config = log, durations, config or JoinConfig()
        self.counts = JoinCounts()
        self._served: OrderedDict[str, ServedPage] = OrderedDict()
        OpenedFile(path)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")  # nothing is lost with a process; with the power what the log lost, too
        self._db.execute("PRAGMA secure_delete = ON")
        self._db.executescript(_TABLES)
        self._offsets: dict[Topic, Offsets] = {"pages": {}, "feedback": {}}
        self._batch, self._now_ms = 0, 0
        self._recover()

    def _recover(self) -> None:
        """Go on where the state is, and commit to the log what the process of before could not."""
        row = self._db.execute("SELECT value FROM step").fetchone()
        if row is None:
            return
        last = msgspec.msgpack.decode(row[0], type=_Committed)
        self._offsets = {"pages": last.pages, "feedback": last.feedback}
        self._batch, self._now_ms = last.batch, last.now_ms
        committed = self._log.committed(CONSUMER)
        if any(dict(committed.get(topic, {})) != dict(places) for topic, places in self._offsets.items()):
            self._log.commit(CONSUMER, self._offsets, "samples", [NewRecord(*record) for record in last.samples])

    def run(self, stop: Event) -> None:
        """Join what comes until `stop` is set."""
        while not stop.is_set():
            if not self.step():
                stop.wait(0.02)

    def step(self) -> int:
        """Join the next part of both topics; return the number of records. Raises `EventLogError`."""
        count = self._config.records
        pages = self._log.read("pages", self._offsets["pages"], count)
        feedback = self._log.read("feedback", self._offsets["feedback"], count)
        newest = max((record.appended_ms for part in (pages, feedback) for record in part.records), default=0)
        step = _Step(max(self._now_ms, newest))
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for record in pages.records:
                self._page(step, record)
            for record in feedback.records:
                self._event(step, record)
            self._expire(step)
            samples = self._samples(step)
            offsets: dict[Topic, Offsets] = {"pages": pages.offsets, "feedback": feedback.offsets}
            read = len(pages.records) + len(feedback.records)
            if read or samples:
                self._write(step, samples, offsets)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        if read or samples:
            self._log.commit(CONSUMER, offsets, "samples", samples)
            self._offsets, self._now_ms = offsets, step.now_ms
            if feedback.records:
                self.counts.lag_s = max(0.0, time() - feedback.records[0].appended_ms / 1000)
        return read

    def _page(self, step: _Step, record: Record) -> None:
        if not record.value:
            self._forget(step, record.key)
            return
        try:
            served = from_msgpack(record.value, ServedPage)
        except ContractError as error:
            self._skip("pages", record, error)
            return
        self.counts.pages += 1
        kept = _Page(record.partition, record.offset, served.inputs.user_id, served.session_id, record.appended_ms)
        step.pages[served.page_id] = kept
        self._remember(served)
        waiting = self._db.execute("DELETE FROM waiting WHERE page_id = ? RETURNING place, value", (served.page_id,)).fetchall()
        for _, value in sorted(waiting):
            self._apply(step, served.page_id, kept, from_msgpack(value, LoggedEvent))

    def _event(self, step: _Step, record: Record) -> None:
        if not record.value:
            self._forget(step, record.key)
            return
        try:
            event = from_msgpack(record.value, LoggedEvent)
        except ContractError as error:
            self._skip("feedback", record, error)
            return
        self.counts.events += 1
        if event.page_id is None:
            self.counts.without_page += 1
            return
        page = self._kept(step, event.page_id)
        if page is None:
            row = event.page_id, record.offset, event.user_id, record.appended_ms, record.value
            self._db.execute("INSERT OR IGNORE INTO waiting VALUES (?, ?, ?, ?, ?)", row)
        elif page.user_id != event.user_id:
            self.counts.other_item += 1
        else:
            self.counts.late += record.appended_ms - page.served_ms > self._config.wait_ms
            self._apply(step, event.page_id, page, event)

    def _apply(self, step: _Step, page_id: str, page: _Page, event: LoggedEvent) -> None:
        """Take an event into account that is of this page."""
        served = self._page_as_served(page_id, page)
        if served is None:
            self.counts.without_page += 1
            return
        if page.user_id != event.user_id or event.item_id not in _items(served):
            self.counts.other_item += 1
            return
        actions = [name for name in _ACTIONS if getattr(event, name)] + list(event.actions or ())
        watched, event_ms = page.watched.get(event.item_id), event.impression_ms + event.correction_ms
        if watched is None:
            watched = page.watched[event.item_id] = _Watched(event.watch_ms, sorted(set(actions)), event_ms, event.position)
        else:
            before = watched.watch_ms, watched.actions
            watched.watch_ms, watched.actions = max(before[0], event.watch_ms), sorted({*before[1], *actions})
            if before == (watched.watch_ms, watched.actions):
                self.counts.unchanged += 1
        step.due[page_id, event.item_id] = None
        if self._config.has_next:
            self._session(step, page_id, page, event, watched)

    def _session(self, step: _Step, page_id: str, page: _Page, event: LoggedEvent, watched: _Watched) -> None:
        """Find out of which impressions of the session it is known by now whether another one followed."""
        key = event.user_id, event.session_id
        last = self._db.execute("SELECT position, page_id, item_id FROM session WHERE user_id = ? AND id = ?", key).fetchone()
        here = event.position, page_id, event.item_id
        if last is not None and tuple(last) != here:
            if event.position <= last[0]:
                if event.position < last[0]:
                    watched.has_next = True
                self._db.execute(_SEEN, (step.now_ms, *key))
                return
            self._know_next(step, last[1], last[2], True)
        if event.ended in _LEFT and watched.has_next is None:
            watched.has_next = False
        self._db.execute("INSERT OR REPLACE INTO session VALUES (?, ?, ?, ?, ?, ?, NULL)", (*key, *here, step.now_ms))

    def _know_next(self, step: _Step, page_id: str, item_id: int, has_next: bool) -> None:
        page = self._kept(step, page_id)
        if page is not None and (watched := page.watched.get(item_id)) is not None and watched.has_next is not True:
            watched.has_next = has_next
            step.due[page_id, item_id] = None

    def _expire(self, step: _Step) -> None:
        """End sessions, and drop pages and events that have waited for long enough."""
        config, now = self._config, step.now_ms
        query = (
            "SELECT user_id, id, page_id, item_id FROM session WHERE seen_ms < ? AND over_ms IS NULL "
            "ORDER BY seen_ms, user_id, id LIMIT ?"
        )
        for user, session, page_id, item_id in self._db.execute(query, (now - config.session_ms, _EXPIRE_ROWS)).fetchall():
            page = self._kept(step, page_id)
            watched = None if page is None else page.watched.get(item_id)
            if watched is not None and watched.has_next is None:
                self._know_next(step, page_id, item_id, False)
            self._db.execute("UPDATE session SET over_ms = ? WHERE user_id = ? AND id = ?", (now, user, session))
        limits = now - config.wait_ms, _EXPIRE_ROWS
        dropped = self._db.execute(
            "DELETE FROM waiting WHERE rowid IN (SELECT rowid FROM waiting WHERE added_ms < ? LIMIT ?)", limits
        ).rowcount
        self.counts.without_page += dropped
        limits = now - config.late_ms, _EXPIRE_ROWS
        self._db.execute("DELETE FROM page WHERE id IN (SELECT id FROM page WHERE served_ms < ? LIMIT ?)", limits)
        over = "SELECT user_id, id FROM session WHERE over_ms < ? LIMIT ?"
        self._db.executemany("DELETE FROM session WHERE user_id = ? AND id = ?", self._db.execute(over, limits).fetchall())

    def _samples(self, step: _Step) -> list[NewRecord]:
        """Return the samples that are due."""
        found = list[Sample]()
        for page_id, item_id in step.due:
            page = self._kept(step, page_id)
            if page is None:
                continue
            watched, served = page.watched[item_id], self._page_as_served(page_id, page)
            if served is None:
                continue
            labels = labels_of(watched.watch_ms, watched.actions, self._durations(item_id))
            if watched.has_next is not None:
                labels[HAS_NEXT] = watched.has_next
            if labels == watched.labels and watched.revision >= 0:
                continue
            found.append(_sample(served, item_id, watched, labels))
            watched.revision, watched.labels = watched.revision + 1, labels
            self.counts.samples += 1
            self.counts.corrections += watched.revision > 0
        batch = self._batch + 1
        of = len(found)
        return [NewRecord(s.inputs.user_id, to_msgpack(msgspec.structs.replace(s, batch=batch, of=of))) for s in found]

    def _write(self, step: _Step, samples: Sequence[NewRecord], offsets: dict[Topic, Offsets]) -> None:
        self._batch += bool(samples)
        rows = [(page_id, page.user_id, page.served_ms, msgspec.msgpack.encode(page)) for page_id, page in step.pages.items()]
        self._db.executemany("INSERT OR REPLACE INTO page VALUES (?, ?, ?, ?)", rows)
        last = _Committed(
            batch=self._batch,
            now_ms=step.now_ms,
            pages=dict(offsets["pages"]),
            feedback=dict(offsets["feedback"]),
            samples=[(record.key, record.value) for record in samples],
        )
        self._db.execute("INSERT OR REPLACE INTO step VALUES (0, ?)", (msgspec.msgpack.encode(last),))

    def _kept(self, step: _Step, page_id: str) -> _Page | None:
        """Return what is kept of a page, to be changed in this step."""
        page = step.pages.get(page_id)
        if page is None:
            row = self._db.execute("SELECT value FROM page WHERE id = ?", (page_id,)).fetchone()
            if row is None:
                return None
            page = step.pages[page_id] = msgspec.msgpack.decode(row[0], type=_Page)
        return page

    def _page_as_served(self, page_id: str, page: _Page) -> ServedPage | None:
        """Return a page from memory or from the log; None where that does not have it any more."""
        served = self._served.get(page_id)
        if served is None:
            part = self._log.read("pages", {page.partition: page.offset}, 1)
            served = from_msgpack(part.records[0].value, ServedPage) if part.records and part.records[0].value else None
            if served is None or served.page_id != page_id:
                return None
            self._remember(served)
        self._served.move_to_end(page_id)
        return served

    def _remember(self, served: ServedPage) -> None:
        self._served[served.page_id] = served
        if len(self._served) > self._config.pages_in_memory:
            self._served.popitem(last=False)

    def _forget(self, step: _Step, user_id: int) -> None:
        self.counts.forgotten += 1
        gone = [page_id for page_id, page in step.pages.items() if page.user_id == user_id]
        gone += [row[0] for row in self._db.execute("DELETE FROM page WHERE user_id = ? RETURNING id", (user_id,)).fetchall()]
        for page_id in gone:
            step.pages.pop(page_id, None)
            self._served.pop(page_id, None)
        step.due = {(page_id, item): None for page_id, item in step.due if page_id not in gone}
        for table in ("waiting", "session"):
            self._db.execute(f"DELETE FROM {table} WHERE user_id = ?", (user_id,))

    def _skip(self, topic: str, record: Record, error: ContractError) -> None:
        self.counts.unreadable += 1
        _logger.error("record %d of the topic %s is skipped: %s", record.offset, topic, error)

    def close(self) -> None:
        """Close the state."""
        self._db.close()


class _Committed(msgspec.Struct, frozen=True, kw_only=True):
    """The last step, as the state has it."""

    batch: int
    now_ms: int
    pages: dict[int, int]
    feedback: dict[int, int]
    samples: list[tuple[int, bytes]]


_TABLES = """
CREATE TABLE IF NOT EXISTS page (id TEXT PRIMARY KEY, user_id INTEGER, served_ms INTEGER, value BLOB) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS page_user ON page (user_id);
CREATE INDEX IF NOT EXISTS page_served ON page (served_ms);
CREATE TABLE IF NOT EXISTS waiting (page_id TEXT, place INTEGER, user_id INTEGER, added_ms INTEGER, value BLOB,
    PRIMARY KEY (page_id, place));
CREATE INDEX IF NOT EXISTS waiting_user ON waiting (user_id);
CREATE INDEX IF NOT EXISTS waiting_added ON waiting (added_ms);
CREATE TABLE IF NOT EXISTS session (user_id INTEGER, id TEXT, position INTEGER, page_id TEXT, item_id INTEGER,
    seen_ms INTEGER, over_ms INTEGER, PRIMARY KEY (user_id, id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS session_seen ON session (seen_ms);
CREATE TABLE IF NOT EXISTS step (only INTEGER PRIMARY KEY, value BLOB);
"""
_SEEN = "UPDATE session SET seen_ms = ?, over_ms = NULL WHERE user_id = ? AND id = ?"


def joined_labels() -> tuple[str, ...]:
    """Return the labels that samples have, beside the app's own actions."""
    return (*labels_of(0, (), None), HAS_NEXT)


def labels_of(watch_ms: int, actions: Iterable[str], duration_ms: int | None) -> dict[str, bool]:
    """Return the labels of one consumption but `has_next`, which the sessions tell."""
    done, duration = set(actions), duration_ms or np.inf
    labels = {
        "effective_view": watch_ms >= min(duration, EFFECTIVE_VIEW_MS),
        "long_view": watch_ms >= min(duration, LONG_VIEW_MS),
    }
    labels |= {name: name in done for name in _ACTIONS}
    return labels | dict.fromkeys(sorted(done - labels.keys()), True)


def _items(served: ServedPage) -> set[int]:
    return set(np.frombuffer(served.item_id, "<i8").tolist())


def _sample(served: ServedPage, item_id: int, watched: _Watched, labels: dict[str, bool]) -> Sample:
    place = np.frombuffer(served.item_id, "<i8").tolist().index(item_id)
    n = len(served.item_id) // 8
    return Sample(
        batch=0,
        of=0,
        page_id=served.page_id,
        item_id=item_id,
        place=place,
        event_ms=watched.event_ms,
        revision=watched.revision + 1,
        labels=labels,
        before=watched.labels,
        watch_ms=watched.watch_ms,
        run=served.run,
        sequence=served.sequence,
        experiment=served.experiment,
        inputs=served.inputs,
        pxtr=_row(served.pxtr, place, n),
        statistics=_row(served.statistics, place, n),
    )


def _row(values: bytes, place: int, rows: int) -> bytes:
    width = len(values) // rows
    return values[place * width : (place + 1) * width]
