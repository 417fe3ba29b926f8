"""From the topics `pages` and `feedback` to a log that `pocketrank train` learns from: what a server collected.

An impression is what all events of one candidate of a page say together, and one without its page what those of one place of a
session say: the longest watch, each action that any of them has, the earliest date, the signals of the event that came first.
Nothing is too late, because all of the topics is known. `has_next` is true where the session has an impression at a later
position or, at the same one, of a later date; false where the user left or nothing of the session came for `session_ms` before
the end of the topics; else unknown.

Records are gathered in an SQLite file beside the log, step by step. An export that was stopped goes on in that file, with the
records that came meanwhile. The rows of all impressions are on the disk, and those of one part in memory. The candidates of all
pages are in memory once, at the end, as in an import.

Errors::

    DataError                  the topics have no impression of a known item, or the gathered file cannot be used
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pocketrank.cloud.data.log import LogWriter, StoredLog
from pocketrank.cloud.data.schema import IDS, ITEMS, LABELS, PAGES, USERS, DataError, impressions_schema
from pocketrank.cloud.data.validate import RANGES, TIMES_MS
from pocketrank.cloud.published.id_texts import PublishedIds
from pocketrank.cloud.published.published import Published, PublishedRecord
from pocketrank.cloud.streams.event_log import EventLog, Offsets, Record, Topic
from pocketrank.cloud.streams.feedback_log import LoggedEvent
from pocketrank.cloud.streams.follower import Follower
from pocketrank.cloud.streams.join_state import ACTION_LABELS, JoinConfig
from pocketrank.cloud.streams.messages import ItemChange, ServedPage, UserChange
from pocketrank.cloud.streams.sqlite_file import OpenedFile
from pocketrank.device.codec import from_msgpack
from pocketrank.device.contract import EFFECTIVE_VIEW_MS, LONG_VIEW_MS, ContractError, Ended, FeedbackEvent

__all__ = ["Exported", "export_log"]

_SIGNALS = tuple(name for name in FeedbackEvent.__struct_fields__ if name in impressions_schema(()).names)
_DERIVED = {"user_id", "item_id", "session_id", "page_id", "impression_ms", "watch_ms", "position", "ended", *ACTION_LABELS}
_READ, _ROWS = 1000, 1 << 14

Int = NDArray[np.int64]


@dataclass
class Exported:
    """What an export wrote, and what it left out."""

    pages: int = 0
    events: int = 0
    impressions: int = 0
    without_page: int = 0
    """Impressions whose page is not in the topics; they are in the log, without it."""
    unknown_items: int = 0
    """Impressions of items that neither the run nor the topic `items` has; they are left out."""
    undated: int = 0
    """Events that are dated before 1990 or after 2099; they are left out."""
    unreadable: int = 0


def export_log(
    log: EventLog,
    published: Published,
    record: PublishedRecord,
    out: Path,
    *,
    name: str,
    ids: PublishedIds | None = None,
    grown: Sequence[tuple[str, str, int]] = (),
    weights: Mapping[str, float] | None = None,
    session_ms: int = JoinConfig.session_ms,
    report: Callable[[float], None] = lambda share: None,
) -> tuple[StoredLog, Exported]:
    """Write the impressions of the topics, with the catalogue of a run and what was put since, into the folder `out`.

    `ids` are the run's dictionaries and `grown` the kind, text and code of those that a server added. Tasks have the `weights`,
    by default 1. `report` is called with the share that is done. Raises `DataError`, `EventLogError`, OSError.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f"{out.name}.gathered")
    own = tuple(one for one in record.actions if one not in LABELS)
    OpenedFile(work)  # for its owner alone
    try:
        with closing(sqlite3.connect(work, isolation_level=None)) as db:
            gathered = _Gathered(db, own)
            gathered.read(log, lambda share: report(0.6 * share))
            gathered.sort(session_ms)
            catalogue = _Catalogue(published, record, log)
            counts = gathered.counts
            counts.unreadable += catalogue.unreadable
            with LogWriter(
                out,
                name=name,
                simulated=record.simulated,
                time_zone=record.time_zone,
                tasks={task: (weights or {}).get(task, 1.0) for task in record.tasks},
                labels=[*own, *(task for task in record.tasks if task not in LABELS and task not in own)],
                actions=own,
                scores=[f"pxtr_{task}" for task in record.tasks],
                source=f"topics of {name}",
            ) as writer:
                total = gathered.total()
                for rows in gathered.impressions():
                    table = _table(rows, catalogue, record, own, counts)
                    writer.write(table)
                    counts.impressions += len(table)
                    report(0.6 + 0.35 * counts.impressions / max(1, total))
                items, users = catalogue.items(), catalogue.users()
                stored = writer.finish(
                    items,
                    users,
                    pages=gathered.pages(catalogue),
                    ids=_ids(ids or PublishedIds(), grown, catalogue, record),
                    item_categories=record.category_names[2:],
                    item_floats=record.float_names[1:],
                    user_categories=catalogue.user_categories,
                    numbering=record.numbering,
                )
    except sqlite3.Error as error:
        raise DataError(str(work), f"expected a file of gathered records, got: {error}; remove it and export again") from error
    work.unlink(missing_ok=True)
    report(1.0)
    return stored, counts


class _Gathered:
    """Records of the topics in an SQLite file."""

    def __init__(self, db: sqlite3.Connection, own: Sequence[str]) -> None:
        self._db, self._own = db, own
        self._flags = [*ACTION_LABELS, *own]
        flags = ", ".join(f'"{one}" INTEGER' for one in self._flags)
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(
            "CREATE TABLE IF NOT EXISTS place (only INTEGER PRIMARY KEY, value BLOB);"
            "CREATE TABLE IF NOT EXISTS page (number INTEGER PRIMARY KEY, user INTEGER, id TEXT, scene INTEGER, items BLOB,"
            " pxtr BLOB, UNIQUE (user, id));"
            "CREATE TABLE IF NOT EXISTS event (place INTEGER PRIMARY KEY, user INTEGER, page TEXT, item INTEGER, at TEXT,"
            " id TEXT, session TEXT, position INTEGER, ms INTEGER, watch INTEGER, left INTEGER, added INTEGER, body BLOB,"
            f" {flags}, UNIQUE (user, id));"
            "DROP TABLE IF EXISTS impression; DROP TABLE IF EXISTS session;"
        )
        row = db.execute("SELECT value FROM place").fetchone()
        self.counts, self._places = Exported(), dict[Topic, Offsets]()
        if row is not None:
            counts, places = msgspec.msgpack.decode(row[0], type=tuple[dict[str, int], dict[Topic, dict[int, int]]])
            self.counts, self._places = Exported(**counts), dict(places)

    def read(self, log: EventLog, report: Callable[[float], None]) -> None:
        """Gather the records that are there now, from where an earlier export was stopped."""
        takes: dict[Topic, Callable[[Record], None]] = {"pages": self._page, "feedback": self._event}
        for topic, take in takes.items():
            ends = log.ends(topic)
            total = max(1, sum(ends.values()))
            while records := (part := log.read(topic, self._places.get(topic, {}), _READ)).records:
                self._db.execute("BEGIN")
                for one in records:
                    if one.value:
                        take(one)
                    else:
                        self._forget(one.key)
                self._places[topic] = part.offsets
                places = {name: dict(found) for name, found in self._places.items()}
                state = msgspec.msgpack.encode((asdict(self.counts), places))
                self._db.execute("INSERT OR REPLACE INTO place VALUES (0, ?)", (state,))
                self._db.execute("COMMIT")
                done = min(1.0, sum(part.offsets.values()) / total)
                report((done + (topic == "feedback")) / 2)
                if all(part.offsets.get(partition, 0) >= end for partition, end in ends.items()):
                    break

    def _page(self, record: Record) -> None:
        try:
            page = from_msgpack(record.value, ServedPage)
        except ContractError:
            self.counts.unreadable += 1
            return
        row = record.key, page.page_id, page.inputs.scene, page.item_id, page.pxtr
        self.counts.pages += self._db.execute(
            "INSERT OR IGNORE INTO page (user, id, scene, items, pxtr) VALUES (?, ?, ?, ?, ?)", row
        ).rowcount

    def _event(self, record: Record) -> None:
        try:
            event = from_msgpack(record.value, LoggedEvent)
        except ContractError:
            self.counts.unreadable += 1
            return
        ms = event.impression_ms + event.correction_ms
        if not TIMES_MS[0] <= ms <= TIMES_MS[1]:
            self.counts.undated += 1
            return
        done = set(event.actions or ())
        at = "" if event.page_id is not None else f"{event.session_id} {event.position}"
        row = (
            record.key, event.page_id or "", event.item_id, at, event.event_id, event.session_id, event.position, ms,
            event.watch_ms, event.ended in (Ended.EXIT, Ended.BACKGROUND), record.appended_ms, record.value,
            *(bool(getattr(event, one)) for one in ACTION_LABELS), *(one in done for one in self._own),
        )  # fmt: skip
        names = ", ".join(f'"{one}"' for one in self._flags)
        self.counts.events += self._db.execute(
            "INSERT OR IGNORE INTO event (user, page, item, at, id, session, position, ms, watch, left, added, body, "
            f"{names}) VALUES ({', '.join('?' * len(row))})",
            row,
        ).rowcount

    def _forget(self, user: int) -> None:
        for table in ("page", "event"):
            self._db.execute(f"DELETE FROM {table} WHERE user = ?", (user,))

    def sort(self, session_ms: int) -> None:
        """Make impressions of events."""
        flags = "".join(f', max("{one}") AS "{one}"' for one in self._flags)
        now = self._db.execute("SELECT coalesce(max(added), 0) FROM event").fetchone()[0]
        self._db.executescript(
            "CREATE TABLE session AS SELECT row_number() OVER (ORDER BY user, session) AS number, user, session,"
            " max(added) AS last FROM event GROUP BY user, session;"
            "CREATE UNIQUE INDEX session_id ON session (user, session);"
            "CREATE TABLE impression AS SELECT min(place) AS place, user, page, item, min(position) AS position,"
            f" min(ms) AS ms, max(watch) AS watch, max(left) AS left, min(session) AS session{flags} FROM event"
            " GROUP BY user, page, item, at;"
            "ALTER TABLE impression ADD COLUMN next INTEGER;"
            "UPDATE impression SET next = later.next FROM (SELECT i.rowid AS row, CASE WHEN row_number() OVER (PARTITION BY"
            " i.user, i.session ORDER BY i.position DESC, i.ms DESC) > 1 THEN 1 WHEN i.left THEN 0"
            f" WHEN s.last + {int(session_ms)} <= {int(now)} THEN 0 END AS next"
            " FROM impression i JOIN session s USING (user, session)) AS later WHERE later.row = impression.rowid;"
            "CREATE INDEX impression_order ON impression (ms, user, item);"
        )

    def total(self) -> int:
        """Return the number of impressions."""
        return int(self._db.execute("SELECT count(*) FROM impression").fetchone()[0])

    def impressions(self) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the impressions in the order of a log, part by part."""
        flags = "".join(f', i."{one}"' for one in self._flags)
        rows = self._db.execute(
            "SELECT i.user, i.item, i.ms, i.watch, i.position, i.next, s.number, p.number, p.scene, p.items, p.pxtr, e.body"
            f"{flags} FROM impression i JOIN session s USING (user, session) JOIN event e ON e.place = i.place"
            " LEFT JOIN page p ON p.user = i.user AND p.id = i.page ORDER BY i.ms, i.user, i.item"
        )
        while part := rows.fetchmany(_ROWS):
            yield part

    def pages(self, catalogue: _Catalogue) -> pa.Table:
        """Return the candidates of the pages that impressions are of."""
        numbers, lists = [], []
        for number, items in self._db.execute(
            "SELECT number, items FROM page p WHERE EXISTS (SELECT 1 FROM impression i WHERE i.user = p.user AND i.page = p.id)"
            " ORDER BY number"
        ):
            found = np.frombuffer(items, "<i8")
            numbers.append(number)
            lists.append(found[catalogue.at(found) >= 0])
        return pa.table([pa.array(numbers, pa.int64()), pa.array(lists, PAGES.field("item_id").type)], schema=PAGES)


class _Catalogue:
    """Items and users of a run, and those that were put since."""

    def __init__(self, published: Published, record: PublishedRecord, log: EventLog) -> None:
        self._published, self._record = published, record
        items, users = Follower(log, "items", ItemChange), Follower(log, "users", UserChange)
        self.put = {one.item_id: one for _, one in items.new() if not one.removed}
        self.put_users: dict[int, UserChange] = {}
        for _, change in users.new():
            if change.removed:
                self.put_users.pop(change.user_id, None)
            else:
                self.put_users[change.user_id] = change
        self.unreadable = items.unreadable + users.unreadable
        known = np.asarray(published.item_id[1:])
        self.item_ids = np.union1d(known, np.array(list(self.put), np.int64))
        self._row = np.zeros(len(self.item_ids), np.int64)
        self._row[np.searchsorted(self.item_ids, known)] = np.arange(1, len(known) + 1)
        self.duration_ms = np.asarray(published.item_float[:, 0], np.float64)[self._row]
        for id, one in self.put.items():
            self.duration_ms[self.at(np.array([id]))[0]] = one.duration_ms
        self.duration_ms = np.nan_to_num(np.maximum(self.duration_ms, 0)).astype(np.int64)
        self.user_ids = np.union1d(np.asarray(published.user_id[1:]), np.array(list(self.put_users), np.int64))
        self.user_categories = tuple(sorted({name for one in self.put_users.values() for name in one.categories}))

    def at(self, ids: Int) -> Int:
        """Return the places of ids in `item_ids`, -1 for others."""
        if not len(self.item_ids):
            return np.full(len(ids), -1)
        place = np.searchsorted(self.item_ids, ids).clip(0, len(self.item_ids) - 1)
        return np.where(self.item_ids[place] == ids, place, -1)

    def items(self) -> pa.Table:
        """Return the table of items."""
        published, names = self._published, self._record
        codes, numbers = (
            np.asarray(published.item_category)[self._row],
            np.asarray(published.item_float)[self._row].astype(float),
        )
        author, upload = np.asarray(published.item_author)[self._row], np.asarray(published.item_upload_ms)[self._row]
        vectors: list[list[float] | None] = [None] * len(self.item_ids)
        for id, one in self.put.items():
            at = int(self.at(np.array([id]))[0])
            author[at], codes[at, 0] = one.author_id, one.category
            upload[at] = -1 if one.upload_ms is None else one.upload_ms
            codes[at, 2:] = [one.categories.get(name, 0) for name in names.category_names[2:]]
            numbers[at, 1:] = [one.floats.get(name, np.nan) for name in names.float_names[1:]]
            vectors[at] = list(one.vector) or None
        columns = [
            pa.array(self.item_ids),
            pa.array(self.duration_ms),
            pa.array(author, pa.int64()),
            pa.array(codes[:, 0], pa.int32()),
            pa.nulls(len(author), pa.int64()),
            pa.array(upload, pa.int64(), mask=upload < 0),
            pa.array(vectors, ITEMS.field("vector").type),
            pa.array(list(codes[:, 2:]), ITEMS.field("categories").type),
            pa.array(list(numbers[:, 1:].astype(np.float32)), ITEMS.field("floats").type),
        ]
        return pa.table(columns, schema=ITEMS)

    def users(self) -> pa.Table:
        """Return the table of users. What the run knew of them is in its rows only; what was put since is here."""
        floats = sorted({name for one in self.put_users.values() for name in one.floats})
        put = [self.put_users.get(user) for user in self.user_ids.tolist()]
        codes = [None if one is None else [one.categories.get(name, 0) for name in self.user_categories] for one in put]
        numbers = [None if one is None else [one.floats.get(name, 0.0) for name in floats] for one in put]
        columns = [
            pa.array(self.user_ids),
            pa.array(codes, USERS.field("categories").type),
            pa.array(numbers, USERS.field("floats").type),
        ]
        return pa.table(columns, schema=USERS)


def _table(
    rows: Sequence[tuple[Any, ...]], catalogue: _Catalogue, record: PublishedRecord, own: Sequence[str], counts: Exported
) -> pa.Table:
    """Return impressions as a table of a log."""
    items = np.array([row[1] for row in rows], np.int64)
    places = catalogue.at(items)
    counts.unknown_items += int((places < 0).sum())
    rows = [row for row, place in zip(rows, places.tolist(), strict=True) if place >= 0]
    duration = catalogue.duration_ms[places[places >= 0]].astype(np.float64)
    duration[duration <= 0] = np.inf
    by_column: list[Any] = list(zip(*rows, strict=True)) or [()] * (12 + len(ACTION_LABELS) + len(own))
    user, item, ms, watch, position, follows, session, page, scene, candidates, pxtr, body, *flags = by_column
    scores, paged = np.full((len(rows), len(record.tasks)), np.nan, np.float32), np.zeros(len(rows), bool)
    for i, (one, found, values) in enumerate(zip(item, candidates, pxtr, strict=True)):
        at = np.flatnonzero(np.frombuffer(found or b"", "<i8") == one)
        if len(at):
            paged[i] = True
            if len(values) == len(found) // 2 * len(record.tasks):
                scores[i] = np.frombuffer(values, "<f4").reshape(-1, len(record.tasks))[at[0]]
    counts.without_page += int((~paged).sum())
    watch_ms = np.array(watch, np.int64)
    columns: dict[str, Any] = {
        "user_id": user,
        "item_id": item,
        "impression_ms": ms,
        "watch_ms": watch_ms,
        "session_id": session,
        "page_id": [number if known else None for number, known in zip(page, paged, strict=True)],
        "position": position,
        "scene": scene,
        "effective_view": watch_ms >= np.minimum(duration, EFFECTIVE_VIEW_MS),
        "long_view": watch_ms >= np.minimum(duration, LONG_VIEW_MS),
        "has_next": [None if one is None else bool(one) for one in follows],
    }
    columns |= {name: np.array(flag, bool) for name, flag in zip((*ACTION_LABELS, *own), flags, strict=True)}
    events = [from_msgpack(one, LoggedEvent) for one in body]
    columns["ended"] = [int(one.ended) for one in events]
    for name in _SIGNALS:
        if name not in _DERIVED:
            columns[name] = [_in_range(name, getattr(one, name)) for one in events]
    columns |= {f"pxtr_{task}": pa.array(scores[:, k], from_pandas=True) for k, task in enumerate(record.tasks)}
    schema = impressions_schema([*own, *record.tasks], [f"pxtr_{task}" for task in record.tasks])
    arrays = [
        columns[field.name]
        if isinstance(columns.get(field.name), pa.Array)
        else pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _in_range(name: str, value: Any) -> Any:
    """Return a signal, None where a log may not have it."""
    low, high = RANGES["impressions"].get(name, (-np.inf, np.inf))
    return None if value is None or not low <= value <= high else value


def _ids(ids: PublishedIds, grown: Sequence[tuple[str, str, int]], catalogue: _Catalogue, record: PublishedRecord) -> pa.Table:
    """Return the dictionaries of a log: the texts of users, items, authors and categories."""
    items = catalogue.items()
    codes: dict[str, Int] = {
        "user_id": catalogue.user_ids,
        "item_id": catalogue.item_ids,
        "author_id": items["author_id"].to_numpy(),
        "category": items["category"].to_numpy().astype(np.int64),
    }
    lists = np.array(items["categories"].to_pylist(), np.int64).reshape(len(items), -1)
    codes |= {f"items.{name}": lists[:, k] for k, name in enumerate(record.category_names[2:])}
    found = {(kind, text, code) for kind, text, code in grown}
    for kind in ids.kinds & codes.keys():
        texts = ((code, ids.text(kind, code)) for code in np.unique(codes[kind]).tolist())
        found |= {(kind, text, code) for code, text in texts if text is not None}
    rows = sorted(found)
    columns = [[kind for kind, _, _ in rows], [code for _, _, code in rows], [text for _, text, _ in rows]]
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, IDS, strict=True)], schema=IDS)
