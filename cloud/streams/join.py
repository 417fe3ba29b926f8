"""Joins feedback with the page as served, and sends a sample as soon as its consumption is known to be over.

This is what every implementation of the join does; `JoinConfig` has all its numbers.

Attribution
- An event belongs to the candidate of its item on the page that it names, of the same user. An item that a page has twice
  counts at its first place.
- All events of one candidate are one consumption: it was watched for as long as the longest of them says, has each action
  that any of them has, and is dated by the earliest. An event whose id the candidate has seen is ignored, and so is a page
  whose id the user has.
- Events that name no page, an item that their page does not have, or a page that does not come within `wait_ms`, make no
  sample: the inputs as served are not known. They are counted by reason, and count as impressions of their session.

Labels
- `effective_view` and `long_view` follow from watch and duration by the thresholds that the histories of users have; the
  device reports the other actions, which are false where it does not. An action of the app's own that `actions` does not name
  is a label only where it was done.
- `has_next` is true once the session has an impression behind this one, by position, then date, and by no other order. It is
  false when the event says that the user left, and when the session is over by time; an impression behind it that comes later
  makes it true. For a run with this task (`has_next`), a first sample lacks the label where it is not known yet, and a
  correction adds it, so that all else is learned at once. With `wait_for_next` the sample waits for it. For a run without the
  task there is no such label, and no correction for it.

Samples
- A sample is sent with the event that makes it known, and again, with the next revision and the labels `before`, when a label
  or the watch time has changed.
- A candidate that was not shown is over when `exposures` candidates behind it on the page were shown, when a page of the
  session that was served later comes, or when the session is over by time. The share `negatives` of them, chosen by a hash of
  page and item, is sent with `shown` false and without labels. If it is shown later, that is a correction.

Time
- Now is the newest time at which a record that was read was appended to the log. No clock of a device decides anything; the
  date of an event, as the log has corrected it, orders impressions of one position only.
- Records count in the order in which they were appended, pages before feedback. A session is over after `session_ms` without
  a page or event of it, a page takes events for `late_ms` after it came, and a session is forgotten `late_ms` after its last
  page or event.
- When nothing comes, time goes on with the clock of this machine, `idle_ms` behind it. That ends only what the next record
  would have ended before anything else.
- Whatever the order of records within these times, the last revisions of all samples are the same.
- A forgotten user's pages, events and samples of the same step are dropped.

Failures
- Each step is one transaction in the file of the join's state, together with the samples that the step made. Then these are
  committed to the event log, with the places up to which topics were read, and with the number of the batch as the place in
  `samples`, which the join does not read. By that number a process that was killed in between finds that it has to commit
  again.
- A join whose file is lost, or is not that of the log, reads pages and feedback from the beginning, and sends no revision
  that is in `samples` already.

Memory holds `in_memory` users and states of pages, `pages_bytes` of pages as served, and a step. The rest is in the file, or,
for pages as served, in the log.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import time

import msgspec

from pocketrank.cloud.streams.event_log import EventLog, NewRecord, Offsets, Record, Topic
from pocketrank.cloud.streams.join_state import (
    HAS_NEXT,
    Durations,
    JoinConfig,
    JoinCounts,
    JoinState,
    joined_labels,
    labels_of,
)
from pocketrank.cloud.streams.messages import Sample
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import MismatchError

__all__ = [
    "CONSUMER",
    "HAS_NEXT",
    "Durations",
    "Join",
    "JoinConfig",
    "JoinCounts",
    "JoinStateError",
    "joined_labels",
    "labels_of",
]

CONSUMER = "join"
"""Name under which the join's places are committed."""
_TOPICS: tuple[Topic, ...] = ("pages", "feedback")
_FORMAT = 1


class JoinStateError(MismatchError):
    """The file of the join's state cannot be opened, is of another format, or another process has it open."""


class Join:
    """The join over the topics of `log`, with its state in the file at `path`. Call it from one thread.

    After an error the next step begins where the last one that was whole ended.

    Raises `EventLogError`, `JoinStateError`.
    """

    def __init__(
        self,
        log: EventLog,
        path: Path,
        durations: Durations,
        config: JoinConfig | None = None,
        *,
        records: int = 1000,
        idle_ms: int | None = 2000,
    ) -> None:
        """`records` of a topic are read at a time. Without `idle_ms`, time stands still when no record comes."""
        self._log, self._records, self._idle_ms = log, records, idle_ms
        self._ahead: dict[Topic, list[Record]] = {topic: [] for topic in _TOPICS}
        """Records that were read, and whose turn has not come."""
        self._ahead_offsets: dict[Topic, dict[int, int]] = {}
        try:
            self._state = JoinState(config or JoinConfig(), durations, self._page_at, path)
            self._db = self._state.db
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("BEGIN IMMEDIATE")  # nobody else may have it from here on
            self._db.executescript(_TABLES)
            self._recover()
            self._whole = True
            """Whether the state in memory is that of the file, and the log has its samples."""
        except (sqlite3.Error, OSError) as error:
            raise JoinStateError(str(path), "the state of a join that no other process has open", str(error)) from error

    @property
    def counts(self) -> JoinCounts:
        """What this process has joined so far."""
        return self._state.counts

    def _recover(self) -> None:
        """Go on where the state is, and commit to the log what the process of before could not."""
        committed = self._log.committed(CONSUMER)
        delivered = dict(committed.get("samples", {})).get(0, 0)
        row = self._db.execute("SELECT value FROM step").fetchone()
        last = _Step() if row is None else msgspec.msgpack.decode(row[0], type=_Step)
        if last.format != _FORMAT or last.batch not in (delivered, delivered + 1):
            self._rebuild(committed, delivered)
            return
        self._batch, self._rebuilt = last.batch, last.rebuilt
        self._offsets = {topic: dict(last.offsets.get(topic, {})) for topic in _TOPICS}
        self._state.now_ms = last.now_ms
        if last.batch > delivered:
            self._deliver([NewRecord(*record) for record in last.samples])

    def _rebuild(self, committed: Mapping[Topic, Offsets], delivered: int) -> None:
        """Begin with an empty state, which knows which samples are in the log."""
        self._db.execute("BEGIN IMMEDIATE")
        for table in ("step", "sent", "user", "page"):
            self._db.execute(f"DELETE FROM {table}")
        places: Offsets = {}
        while (part := self._log.read("samples", places)).records:
            sent = [from_msgpack(record.value, Sample) for record in part.records if record.value]
            rows = [
                (one.inputs.user_id, one.page_id, one.item_id, one.revision, msgspec.msgpack.encode((one.labels, one.watch_ms)))
                for one in sent
            ]
            self._db.executemany("INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?, ?)", rows)
            places = part.offsets
        self._batch, self._offsets = delivered, {topic: {} for topic in _TOPICS}
        self._rebuilt = {topic: dict(committed.get(topic, {})) for topic in _TOPICS}
        self._keep([])
        self._db.execute("COMMIT")

    def step(self) -> int:
        """Join the next part of both topics; return the number of records. Raises `EventLogError`, sqlite3.Error."""
        if not self._whole:
            self._state.reload()
            self._ahead = {topic: [] for topic in _TOPICS}
            self._recover()
        self._whole = False
        read = self._step()
        self._whole = True
        return read

    def _step(self) -> int:
        taken, offsets = self._read()
        state = self._state
        idle_ms = round(time() * 1000) - self._idle_ms if self._idle_ms is not None else 0
        if not taken and offsets == self._offsets and state.next_due_ms() > idle_ms:
            return 0
        self._db.execute("BEGIN IMMEDIATE")
        if taken:
            state.load(max(record.appended_ms for _, record in taken))
            for topic, record in taken:
                (state.page if topic == "pages" else state.event)(record)
        else:
            state.advance(idle_ms)
        self._offsets, self._batch = offsets, self._batch + 1
        samples = self._unsent(state.take())
        numbers = {"batch": self._batch, "of": len(samples)}
        records = [NewRecord(one.inputs.user_id, to_msgpack(msgspec.structs.replace(one, **numbers))) for one in samples]
        state.write()
        self._keep(records)
        self._db.execute("COMMIT")
        self._deliver(records)
        if taken:
            state.counts.lag_s = max(0.0, time() - taken[0][1].appended_ms / 1000)
        return len(taken)

    def _read(self) -> tuple[list[tuple[Topic, Record]], dict[Topic, dict[int, int]]]:
        """Return the records that are next, each with its topic, and the places after them."""
        bounded = [topic for topic in _TOPICS if self._ahead.get(topic)]
        offsets = {topic: dict(self._offsets.get(topic, {})) for topic in _TOPICS}
        for topic in reversed(_TOPICS):  # the pages of all events that are there were appended before them
            if topic not in bounded:
                part = self._log.read(topic, offsets[topic], self._records)
                self._ahead[topic], self._ahead_offsets[topic] = list(part.records), dict(part.offsets)
                if len(part.records) >= self._records:
                    bounded.append(topic)
        taken = list(_in_order(self._ahead, bounded))
        for topic in _TOPICS:
            mine = {id(record): record for one, record in taken if one == topic}
            left = [record for record in self._ahead[topic] if id(record) not in mine]
            if left:
                offsets[topic].update({record.partition: record.offset + 1 for record in mine.values()})
            else:
                offsets[topic] = self._ahead_offsets[topic]
            self._ahead[topic] = left
        return taken, offsets

    def _unsent(self, samples: list[Sample]) -> list[Sample]:
        """Return the samples that the log does not have from before the state was lost."""
        if not self._rebuilt:
            return samples
        sent = "SELECT revision FROM sent WHERE user_id = ? AND page_id = ? AND item_id = ?"

        def is_sent(one: Sample) -> bool:
            row = self._db.execute(sent, (one.inputs.user_id, one.page_id, one.item_id)).fetchone()
            return row is not None and one.revision <= row[0]

        samples = [one for one in samples if not is_sent(one)]
        self._rebuilt = {
            topic: places
            for topic, places in self._rebuilt.items()
            if any(self._offsets.get(topic, {}).get(part, 0) < place for part, place in places.items())
        }
        if not self._rebuilt:
            for user, page_id, item, revision, value in self._db.execute(
                "SELECT * FROM sent ORDER BY user_id, page_id, item_id"
            ):
                labels, watch_ms = msgspec.msgpack.decode(value, type=tuple[dict[str, bool], int])
                self._state.was_sent(user, page_id, item, revision, labels, watch_ms)
            samples += self._state.take()
            self._db.execute("DELETE FROM sent")
        return samples

    def _keep(self, samples: Sequence[NewRecord]) -> None:
        step = _Step(
            format=_FORMAT,
            batch=self._batch,
            now_ms=self._state.now_ms,
            offsets=self._offsets,
            rebuilt=self._rebuilt,
            samples=[(record.key, record.value) for record in samples],
        )
        self._db.execute("INSERT OR REPLACE INTO step VALUES (0, ?)", (msgspec.msgpack.encode(step),))

    def _deliver(self, samples: Sequence[NewRecord]) -> None:
        places: dict[Topic, Offsets] = {**self._offsets, "samples": {0: self._batch}}
        self._log.commit(CONSUMER, places, "samples", samples)

    def _page_at(self, partition: int, offset: int) -> bytes | None:
        after = {**self._log.ends("pages"), partition: offset}  # nothing of the other partitions
        found = self._log.read("pages", after, 1).records
        return found[0].value if found and (found[0].partition, found[0].offset) == (partition, offset) else None

    def close(self) -> None:
        """Close the state."""
        self._state.close()


class _Step(msgspec.Struct, frozen=True, kw_only=True):
    """The last step, as the file has it."""

    format: int = _FORMAT
    batch: int = 0
    now_ms: int = 0
    offsets: dict[Topic, dict[int, int]] = {}
    rebuilt: dict[Topic, dict[int, int]] = {}
    """Where samples up to here may be in the log already; empty where none are."""
    samples: list[tuple[int, bytes]] = []


_TABLES = """
CREATE TABLE IF NOT EXISTS step (only INTEGER PRIMARY KEY, value BLOB);
CREATE TABLE IF NOT EXISTS sent (user_id INTEGER, page_id TEXT, item_id INTEGER, revision INTEGER, value BLOB,
    PRIMARY KEY (user_id, page_id, item_id)) WITHOUT ROWID;
"""


def _in_order(ahead: Mapping[Topic, Sequence[Record]], bounded: Sequence[Topic]) -> Iterator[tuple[Topic, Record]]:
    """Yield the records in the order in which they were appended, pages before feedback, up to where one of the `bounded`
    topics may have more that belong in between."""
    keyed, last = list[tuple[tuple[int, int, int], Topic, Record]](), list[tuple[int, int]]()
    for at, topic in enumerate(_TOPICS):
        newest: dict[int, int] = {}
        for i, record in enumerate(ahead[topic]):  # a clock that was set back does not change the order of a partition
            ms = newest[record.partition] = max(record.appended_ms, newest.get(record.partition, 0))
            keyed.append(((ms, at, i), topic, record))
        if topic in bounded:
            last.append((min(newest.values()), at))
    keyed.sort(key=lambda one: one[0])
    for key, topic, record in keyed:
        if last and key[:2] > min(last):
            return
        yield topic, record
