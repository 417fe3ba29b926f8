"""The process that learns: it reads samples, trains rows, and publishes those that changed.

Everything that it has learned is in an SQLite file of its own. A step is one transaction there: the rows that it changed, with
the optimiser's state, and the place up to which samples were read. An increment is taken from there in another one, which keeps
it as the next to be published; then it is committed to the event log under its number. A process that was killed between the
two publishes the same increment again, and none is left out.

While the guard finds that windows are bad, nothing is learned: the rows go back to what they were in a window that was good,
those that this changes are published, and samples are only predicted until a window is good again. What the rows were is in the
file too, and the sums of the guard are: a process that is killed learns, and goes back, as one that is not.

New items count for samples that were appended later than they were. So it does not matter when a process read of them.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time

import msgspec
import numpy as np

from pocketrank.cloud.published.published import published_digest
from pocketrank.cloud.streams.event_log import EventLog, NewRecord, Offsets, Record
from pocketrank.cloud.streams.follower import Follower
from pocketrank.cloud.streams.messages import ItemChange, ParameterPart, ParameterTable, Sample
from pocketrank.cloud.streams.parameters import sealed
from pocketrank.cloud.streams.sqlite_file import open_state
from pocketrank.cloud.training.errors import RunError
from pocketrank.cloud.training.guard import Guard, GuardConfig, Verdict
from pocketrank.cloud.training.increments import IncrementConfig, IncrementTraining
from pocketrank.cloud.training.learning_base import LearningBase
from pocketrank.cloud.training.row_table import RowTable
from pocketrank.device.codec import from_msgpack
from pocketrank.device.contract import ContractError

__all__ = ["CONSUMER", "Learner", "LearnerConfig", "LearnerCounts"]

CONSUMER = "publisher"
"""Name under which the number of the last increment is committed, in place of an offset of `parameters`."""
_SNAPSHOT = "parameters"
"""Name under which the place is committed from which a server reads `parameters`."""
_EXPIRE_EVERY_MS = 600_000

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearnerConfig:
    """Training, publishing and the guard."""

    increments: IncrementConfig = IncrementConfig()
    guard: GuardConfig = GuardConfig()
    samples: int = 5000
    """Samples that are read at a time."""
    good_every: int = 10_000
    """Samples between two states to go back to. It goes back to the last but one: what was wrong may have begun before a window
    showed it."""
    publish_s: float = 1.0
    """Shortest time between two increments."""
    snapshot_s: float = 3600.0
    """Time between two snapshots of all rows."""
    part_rows: int = 4000
    """Rows of one part of a snapshot."""

    def __post_init__(self) -> None:
        if not 0 < self.publish_s <= 60 or self.snapshot_s <= 0 or self.samples < 1 or self.part_rows < 1:
            raise ValueError("Expected publish_s from above 0 to 60, and snapshot_s, samples and part_rows above 0")


@dataclass
class LearnerCounts:
    """What a process has learned so far."""

    samples: int = 0
    steps: int = 0
    skipped: int = 0
    """Samples that taught nothing: of pages that were not ranked, of before the end of the run's data, or of a bad window."""
    unreadable: int = 0
    increments: int = 0
    snapshots: int = 0
    rows: int = 0
    rollbacks: int = 0
    lag_s: float = 0.0
    """Time from when the last sample was appended until it was learned."""
    verdict: Verdict | None = None
    """Of the last window."""
    is_paused: bool = False
    """Whether nothing is learned because the last window was bad."""


class _Meta(msgspec.Struct, kw_only=True):
    """Where the learner is."""

    run: str
    samples: dict[int, int] = {}
    appended_ms: int = 0
    """When the last of these was appended to the log."""
    sequence: int = 0
    """Of the last increment that was taken."""
    pending: bytes = b""
    """That increment, as a record."""
    event_ms: int = 0
    expired_ms: int = 0
    guard: bytes = b""
    is_paused: bool = False
    period: int = 0
    """Number of the time between two states to go back to."""
    learned: int = 0
    """Samples of the period."""


class Learner:
    """Learner on top of `base`, whose state is in the file at `path`. Call it from one thread.

    Raises `RunError` for the state of another run, `EventLogError`, and sqlite3.Error or OSError when the state cannot be
    opened.
    """

    def __init__(self, log: EventLog, base: LearningBase, path: Path, config: LearnerConfig | None = None) -> None:
        self._log, self._base, self._config = log, base, config or LearnerConfig()
        self.training = IncrementTraining(base, self._config.increments)
        self.counts = LearnerCounts()
        self._guard = Guard(base.record.tasks, self._config.guard)
        self._run = published_digest(base.folder)
        self._until_ms = int(np.asarray(base.published.history_until_ms).max(initial=0))
        """End of the data of the run. Samples of before it were learned then."""
        self._db = open_state(path)
        self._db.executescript(_TABLES)
        self._items = Follower(log, "items", ItemChange)
        self._puts: list[tuple[int, ItemChange]] = []
        """Changes of items that were appended no earlier than the samples so far, and when."""
        self._kept, self._kept_of = set[tuple[str, int]](), -1
        """What of a period the file has as it was before."""
        self._meta = self._load(path)
        self.counts.is_paused = self._meta.is_paused
        self._published_at = self._snapshot_at = monotonic()
        if self._published() > self._meta.sequence:  # by a learner with another state, which servers follow
            self._meta.sequence, self._meta.pending = self._published(), b""
            with _transaction(self._db):
                self._save_meta()
            self.snapshot()
        self._publish_pending()

    def _load(self, path: Path) -> _Meta:
        row = self._db.execute("SELECT value FROM meta").fetchone()
        meta = _Meta(run=self._run) if row is None else msgspec.msgpack.decode(row[0], type=_Meta)
        if meta.run != self._run:
            raise RunError(f"Expected what was learned on the run {self._run}, got that of {meta.run} - at {path}")
        self._follow_items()
        self._put_items(meta.appended_ms)
        if meta.guard:
            self._guard.unpack(meta.guard)
        tables = {"items": self.training.items, "users": self.training.users}
        for kind, table in tables.items():
            for id, data in self._db.execute("SELECT id, value FROM row WHERE kind = ? ORDER BY place", (kind,)):
                table.unpack(id, data)
        for group in range(3):
            for id, data in self._db.execute("SELECT id, value FROM row WHERE kind = ?", (f"counts_{group}",)):
                self.training.set_counts(group, id, data)
        dirty = self._db.execute("SELECT kind, id FROM dirty").fetchall()
        for kind, id in dirty:
            if kind == "counted":
                self.training.counted[id] = None
            else:
                tables[kind].changed[id] = None
        return meta

    # Learning.

    def step(self) -> int:
        """Learn what has come since; return the number of records. Raises `EventLogError`."""
        count = self._config.samples
        while True:
            part = self._log.read("samples", self._meta.samples, count)
            if not part.records:
                return 0
            batches = self._batches(part.records)
            if len(part.records) < count:
                break
            if len(batches) > 1:
                batches.pop()  # it may go on: what is read at a time must not decide what is learned together
                break
            count *= 2
        self._follow_items()
        offsets = dict(self._meta.samples)
        for batch in batches:
            for record, _ in batch:
                offsets[record.partition] = record.offset + 1
            self._learn(batch, offsets)
        self.counts.lag_s = max(0.0, time() - batches[-1][-1][0].appended_ms / 1000)
        return sum(map(len, batches))

    def _batches(self, records: Sequence[Record]) -> list[list[tuple[Record, Sample | None]]]:
        """Return the records by batch of the join, each with its sample; None where there is none, as of a forgotten user."""
        batches: list[list[tuple[Record, Sample | None]]] = []
        last = -1
        for record in records:
            sample = None
            try:
                if record.value:
                    sample = from_msgpack(record.value, Sample)
            except ContractError as error:
                self.counts.unreadable += 1
                _logger.error("record %d of the topic samples is skipped: %s", record.offset, error)
            number = -1 if sample is None else sample.batch
            if number != last or not batches or sample is None:
                batches.append([])
            last = number
            batches[-1].append((record, sample))
        return batches

    def _follow_items(self) -> None:
        """Read the topic `items` to its end: all that was appended before the samples at hand."""
        before = self._items.unreadable
        self._puts += [(record.appended_ms, change) for record, change in self._items.new()]
        self.counts.unreadable += self._items.unreadable - before

    def _put_items(self, before_ms: int) -> None:
        """Take notice of items that were put before a time."""
        if due := [change for appended_ms, change in self._puts if appended_ms < before_ms]:
            self.training.put(due)
            self._puts = [one for one in self._puts if one[0] >= before_ms]

    def _learn(self, batch: Sequence[tuple[Record, Sample | None]], offsets: Offsets) -> None:
        width = 4 * len(self.training.tasks)
        samples = [sample for _, sample in batch if sample is not None]
        fitting = [one for one in samples if self.training.fits(one)]
        usable = [one for one in fitting if len(one.pxtr) == width and one.shown and one.event_ms > self._until_ms]
        counts, meta, verdict = self.counts, self._meta, None
        counts.unreadable += len(samples) - len(fitting)
        counts.skipped += len(fitting) - (0 if meta.is_paused else len(usable))
        meta.appended_ms = max(meta.appended_ms, *(record.appended_ms for record, _ in batch))
        self._put_items(meta.appended_ms)
        if usable:
            result = self.training.step(usable, learn=not meta.is_paused)
            counts.samples += len(usable)
            counts.steps += 1
            meta.learned += len(usable)
            meta.event_ms = max(meta.event_ms, *(one.event_ms for one in usable))
            verdict = self._guard.add(result.probability, result.labels, result.served, result.comparable)
        forgotten = [record.key for record, _ in batch if not record.value]
        for user in forgotten:
            self.training.users.drop(user)
        if meta.event_ms - meta.expired_ms > _EXPIRE_EVERY_MS:
            meta.expired_ms = meta.event_ms
            self.training.expire(meta.event_ms)
        meta.samples = dict(offsets)
        with _transaction(self._db):
            self._save()
            if forgotten:
                self._db.executemany("DELETE FROM undo WHERE kind = 'users' AND id = ?", [(user,) for user in forgotten])
                self._kept -= {("users", user) for user in forgotten}
            if verdict is not None:
                self._judge(verdict)
            meta.guard = self._guard.pack()
            self._save_meta()
        counts.is_paused = meta.is_paused

    def _judge(self, verdict: Verdict) -> None:
        meta, counts = self._meta, self.counts
        was_paused, meta.is_paused = meta.is_paused, bool(verdict.bad)
        counts.verdict = verdict
        if not verdict.bad:
            if was_paused:
                _logger.warning("the samples are good again: learning goes on")
            if meta.learned >= self._config.good_every:
                meta.period, meta.learned = meta.period + 1, 0
                self._db.execute("DELETE FROM undo WHERE period < ?", (meta.period - 1,))
        elif not was_paused:
            counts.rollbacks += 1
            _logger.error(
                "what was predicted of %s is not what is observed (predicted over observed %s, loss over that of the rate %s): "
                "nothing is learned until it is, and the rows go back",
                ", ".join(verdict.bad), verdict.ratio, verdict.loss,
            )  # fmt: skip
            self._undo()
        if verdict.skewed > self._config.guard.skewed_share:
            _logger.error("the inputs of %.0f %% of the samples are not those that were served", 100 * verdict.skewed)

    def _undo(self) -> None:
        """Put everything back to what it was at the beginning of the last period but one that is kept."""
        before: dict[str, dict[int, bytes | None]] = {}
        for kind, id, value in self._db.execute("SELECT kind, id, value FROM undo ORDER BY period DESC, kind, id"):
            before.setdefault(kind, {})[id] = value
        training = self.training
        training.items.restore(before.get("items", {}))
        training.users.restore(before.get("users", {}))
        for group in range(3):
            for key, data in before.get(f"counts_{group}", {}).items():
                training.set_counts(group, key, data)
                training.unsaved_counts[group, key] = None
                if group == 0:
                    training.counted[key] = None
        self._save()
        self._db.execute("DELETE FROM undo")  # the next period begins
        self._meta.period, self._meta.learned = self._meta.period + 1, 0

    def _save(self) -> None:
        """Write what changed, and keep what it was in the period before."""
        training, db = self.training, self._db
        rows = [(kind, id, table.pack(id)) for kind, table in self._tables() for id in table.unsaved]
        rows += [(f"counts_{group}", key, training.counts(group, key)) for group, key in training.unsaved_counts]
        if self._kept_of != self._meta.period:
            self._kept, self._kept_of = set(), self._meta.period
        new = {(kind, id) for kind, id, _ in rows} - self._kept
        db.executemany(_KEEP, [(self._meta.period, kind, id, kind, id) for kind, id in sorted(new)])
        self._kept |= new
        db.executemany(_PUT, [row for row in rows if row[2] is not None])
        if gone := [row[:2] for row in rows if row[2] is None]:
            db.executemany("DELETE FROM row WHERE kind = ? AND id = ?", gone)
        dirty = [(kind, id) for kind, table in self._tables() for id in table.unsaved if id in table.changed]
        db.executemany("INSERT OR IGNORE INTO dirty VALUES (?, ?)", dirty + [("counted", id) for id in training.counted])
        training.items.unsaved, training.users.unsaved, training.unsaved_counts = {}, {}, {}

    def _tables(self) -> tuple[tuple[str, RowTable], tuple[str, RowTable]]:
        return ("items", self.training.items), ("users", self.training.users)

    def _save_meta(self) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (0, ?)", (msgspec.msgpack.encode(self._meta),))

    # Publishing.

    def publish_if_due(self) -> None:
        """Publish what changed, and all that is not as in the run, where it is time to. Raises `EventLogError`."""
        now = monotonic()
        if now - self._published_at >= self._config.publish_s:
            self._published_at = now
            self.publish()
        if now - self._snapshot_at >= self._config.snapshot_s:
            self._snapshot_at = now
            self.snapshot()

    def publish(self) -> bool:
        """Publish an increment of the rows that changed; return whether there were any. Raises `EventLogError`."""
        self._publish_pending()  # one that a failing log did not take must not be replaced
        training = self.training
        items, gone_items = training.changed_items()
        users, gone_users = training.users.taken()
        if not (items or users or gone_items or gone_users):
            return False
        self._meta.sequence += 1
        part = self._part("increment", items, users, gone_items, gone_users)
        self._meta.pending = sealed(part)
        with _transaction(self._db):
            self._db.execute("DELETE FROM dirty")
            self._save_meta()
        self._publish_pending()
        self.counts.increments += 1
        self.counts.rows += len(items) + len(users)
        return True

    def _publish_pending(self) -> None:
        """Put the last increment into the log, unless it is there."""
        if self._meta.pending and self._published() < self._meta.sequence:
            record = NewRecord(self._meta.sequence, self._meta.pending)
            self._log.commit(CONSUMER, {"parameters": {0: self._meta.sequence}}, "parameters", [record])

    def _published(self) -> int:
        """Return the number of the last increment that is in the log."""
        return self._log.committed(CONSUMER).get("parameters", {}).get(0, 0)

    def snapshot(self) -> None:
        """Publish all rows that are not those of the run, from which servers begin. Raises `EventLogError`."""
        items, users, size = self.training.items.ids(), self.training.users.ids(), self._config.part_rows
        chunks: list[tuple[list[int], list[int]]] = [(items[i : i + size], []) for i in range(0, len(items), size)]
        chunks += [([], users[i : i + size]) for i in range(0, len(users), size)]
        chunks = chunks or [([], [])]
        records = [
            NewRecord(self._meta.sequence, sealed(self._part("snapshot", *chunk, part=part, of=len(chunks))))
            for part, chunk in enumerate(chunks)
        ]
        self._log.commit(_SNAPSHOT, {"parameters": self._log.ends("parameters")}, "parameters", records)
        self.counts.snapshots += 1

    def _part(
        self,
        kind: str,
        items: Sequence[int],
        users: Sequence[int],
        gone_items: Sequence[int] = (),
        gone_users: Sequence[int] = (),
        *,
        part: int = 0,
        of: int = 1,
    ) -> ParameterPart:
        training = self.training
        return ParameterPart(
            kind="snapshot" if kind == "snapshot" else "increment",
            run=self._run,
            sequence=self._meta.sequence,
            part=part,
            of=of,
            items=_table(items, training.item_rows(items), gone_items) if items or gone_items else None,
            users=_table(users, training.user_rows(users), gone_users) if users or gone_users else None,
            event_ms=self._meta.event_ms,
            published_ms=int(1000 * time()),
        )

    @property
    def event_ms(self) -> int:
        """Date of the newest event that was learned from; 0 before the first."""
        return self._meta.event_ms

    @property
    def sequence(self) -> int:
        """Number of the last increment."""
        return self._meta.sequence

    def close(self) -> None:
        """Publish what changed, and close the state. Raises `EventLogError`."""
        try:
            self.publish()
        finally:
            self._db.close()


_TABLES = """
CREATE TABLE IF NOT EXISTS row (place INTEGER PRIMARY KEY, kind TEXT, id INTEGER, value BLOB, UNIQUE (kind, id));
CREATE TABLE IF NOT EXISTS dirty (kind TEXT, id INTEGER, PRIMARY KEY (kind, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS undo (period INTEGER, kind TEXT, id INTEGER, value BLOB, PRIMARY KEY (period, kind, id));
CREATE TABLE IF NOT EXISTS meta (only INTEGER PRIMARY KEY, value BLOB);
"""
_PUT = "INSERT INTO row (kind, id, value) VALUES (?, ?, ?) ON CONFLICT (kind, id) DO UPDATE SET value = excluded.value"
_KEEP = "INSERT OR IGNORE INTO undo VALUES (?, ?, ?, (SELECT value FROM row WHERE kind = ? AND id = ?))"


def _table(ids: Sequence[int], columns: dict[str, np.ndarray], removed: Sequence[int]) -> ParameterTable:
    return ParameterTable(
        ids=np.array(ids, "<i8").tobytes(),
        columns={name: np.ascontiguousarray(rows).tobytes() for name, rows in columns.items()},
        removed=np.array(removed, "<i8").tobytes(),
    )


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
