"""Applies what the topics of the event log say of items, users and parameters to the engine that pages are made from.

Work is divided: rows are computed in the thread that follows the topics, and put in place between two pages, where a page is
made. So a page sees all rows of an increment or none, and waits for microseconds.

A process begins with what the run published and reads the topic `items` from its beginning, and `parameters`
from the last snapshot on. A later process has the same positions for items, because it reads the same records in their order.

An increment that is missing, or that is not what was published, is not applied: the process goes back to the last snapshot and
reads on from there.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.pages.engine import PageEngine
from pocketrank.cloud.published.item_encoder import ItemEncoder, author_codes
from pocketrank.cloud.published.moment import statistics_codes
from pocketrank.cloud.published.published import PublishedError
from pocketrank.cloud.streams.event_log import EventLog, Offsets, Record, Topic
from pocketrank.cloud.streams.messages import ItemChange, ParameterPart, ParameterTable
from pocketrank.cloud.streams.parameters import check_part
from pocketrank.cloud.vectors.index import AGE_UNKNOWN, RetrievalError
from pocketrank.device.codec import from_msgpack
from pocketrank.device.contract import ContractError

__all__ = ["LiveRun"]

_TOPICS: tuple[Topic, ...] = ("items", "parameters")
_READ = 500
"""Records that are read at a time."""
_OF_RANKER = ("item_row", "item_identity", "item_vector")
"""Columns of items that models made."""
_PUBLISHED = {"items": ("item_row", "item_identity"), "users": ("user_row",)}
"""Columns that increments change."""

_logger = logging.getLogger(__name__)

Int = NDArray[np.int64]
Apply = Callable[[Callable[[], None]], None]
"""Calls a function where pages are made, between two of them, and returns when it is done."""


class LiveRun:
    """Follower of the topics for one engine. Call it from one thread."""

    def __init__(self, engine: PageEngine, published: Path, log: EventLog, run: str) -> None:
        """`published` is the folder of the published run, and `run` its digest, which increments name."""
        self._engine, self._log, self._run = engine, log, run
        self._offsets: dict[Topic, Offsets] = {topic: {} for topic in _TOPICS}
        try:
            self._encoder: ItemEncoder | None = ItemEncoder(published, engine.published, engine.record)
        except PublishedError as error:
            self._encoder = None
            _logger.info("new items have the rows of the unknown item: %s", error)
        self._author_code = author_codes(engine.published, engine.record)
        self.sequence = 0
        """Sequence number of the parameters in place; 0 are those of the run."""
        self.event_ms = 0
        """Date of the newest event that the parameters in place have learned from; 0 = those of the run."""
        self.counts = Counter[str]()
        """Number of items put and removed, of increments applied, repeated, refused and of another run, and of rows."""
        self._snapshot = list[ParameterPart]()
        self._tried: tuple[int, dict[int, int]] | None = None
        """Where the last way back to a snapshot began."""
        self._changed: dict[str, set[int]] = {"items": set(), "users": set()}
        """Ids whose rows are not those of the run."""
        self._encoded: dict[int, dict[str, NDArray[Any]]] = {}
        """Rows that new items began with."""
        self._waiting: dict[int, dict[str, NDArray[Any]]] = {}
        """Rows of items that are not in the catalogue yet."""
        self._resume()

    def _resume(self) -> None:
        """Read the parameters from the last snapshot on."""
        self._snapshot = []
        self._offsets["parameters"] = self._log.committed("parameters").get("parameters", {})

    def follow(self, apply: Apply) -> int:
        """Apply what is new in the topics; return the number of records. Raises `EventLogOpenError`."""
        read = 0
        for topic in _TOPICS:
            while True:
                part = self._log.read(topic, self._offsets[topic], _READ)
                if not part.records and part.offsets == self._offsets[topic]:
                    break
                self._offsets[topic] = part.offsets
                read += len(part.records)
                if topic == "items":
                    self._items(part.records, apply)
                else:
                    self._parameters(part.records, apply)
        return read

    # Items.

    def _items(self, records: Sequence[Record], apply: Apply) -> None:
        # Positions are in the order of first changes, whatever is read at a time. So an item that is put and removed in one
        # part gets one all the same.
        last_put: dict[int, ItemChange] = {}
        is_removed: dict[int, bool] = {}
        for record in records:
            try:
                change = from_msgpack(record.value, ItemChange)
            except ContractError as error:
                self._skip("items", record, error)
                continue
            is_removed[change.item_id] = change.removed
            if not change.removed:
                last_put[change.item_id] = change
        puts, gone = list(last_put.values()), [item for item, removed in is_removed.items() if removed]
        catalogue = self._engine.catalogue
        values = self._values(puts) if puts else {}
        ids = [one.item_id for one in puts]
        catalogue.rows.make_room(len(ids))
        put = removed = np.zeros(0, np.int64)

        def change_catalogue() -> None:
            nonlocal put, removed
            if ids:
                put = self._put(ids, values)
            if gone:
                removed = catalogue.remove(gone)
            self._follow_statistics()

        if is_removed:
            apply(change_catalogue)
            self._change_vectors(np.setdiff1d(put, removed), removed)
            self.counts["items_put"] += len(put)
            self.counts["items_removed"] += len(removed)

    def _values(self, puts: Sequence[ItemChange]) -> dict[str, NDArray[Any]]:
        """Return the columns of items that are put; rows of the ranker are those of items that the run does not know."""
        record = self._engine.record
        codes = [{"category": one.category, "author": self._author_code.get(one.author_id, 0)} | one.categories for one in puts]
        upload = [AGE_UNKNOWN if one.upload_ms is None else one.upload_ms for one in puts]
        floats = [{"duration_ms": one.duration_ms} | one.floats for one in puts]
        values: dict[str, NDArray[Any]] = {
            "item_float": np.array([[of.get(name, np.nan) for name in record.float_names] for of in floats], np.float32),
            "item_category": np.array([[of.get(name, 0) for name in record.category_names] for of in codes], np.int32),
            "item_author": np.array([one.author_id for one in puts], np.int64),
            "item_upload_ms": np.array(upload, np.int64),
        }
        if self._encoder is not None:
            return values | self._encoder.columns_of(puts)
        rows = self._engine.catalogue.rows.columns
        return values | {name: rows[name][np.zeros(len(puts), np.int64)] for name in _OF_RANKER}

    def _put(self, ids: Sequence[int], values: dict[str, NDArray[Any]]) -> Int:
        catalogue = self._engine.catalogue
        is_new = catalogue.positions(ids) == 0
        put = catalogue.put(ids, {name: rows for name, rows in values.items() if name not in _OF_RANKER})
        new = np.flatnonzero(is_new)  # known items keep theirs
        if len(new):
            catalogue.set_rows(np.array(ids, np.int64)[new], {name: values[name][new] for name in _OF_RANKER})
        for i in new.tolist():
            self._encoded[ids[i]] = {name: values[name][i : i + 1].copy() for name in _OF_RANKER}
            if (waiting := self._waiting.pop(ids[i], None)) is not None:
                catalogue.set_rows(np.array([ids[i]]), waiting)
        return put

    def _follow_statistics(self) -> None:
        engine = self._engine
        if engine.moment is not None:
            engine.moment.statistics.follow(statistics_codes(engine.catalogue.categories, engine.record.category_names))

    def _change_vectors(self, put: Int, removed: Int) -> None:
        """Let stores and indexes know, which may be searched meanwhile."""
        engine, catalogue = self._engine, self._engine.catalogue
        vectors = catalogue.rows.columns["item_vector"]
        if len(put):
            engine.splits.put(engine.record.split_version, catalogue.item_id[put], vectors[put])
        for name, index in engine.indexes.items():
            try:
                if len(put):
                    index.upsert(put, vectors[put], catalogue.attributes.take(put))
                if len(removed):
                    index.delete(removed)
            except RetrievalError as error:  # the filters hold all the same
                _logger.error("the index %s did not take a change of the catalogue: %s", name, error)

    # Parameters.

    def _parameters(self, records: Sequence[Record], apply: Apply) -> None:
        is_behind = False
        for record in records:
            try:
                part = check_part(record.value)
            except ContractError as error:
                self._skip("parameters", record, error)
                continue
            if part.run != self._run:
                self.counts["increments_of_another_run"] += 1
            elif part.kind == "snapshot":
                self._take_snapshot(part, apply)
            elif part.sequence <= self.sequence:
                self.counts["increments_repeated"] += 1
            elif part.sequence == self.sequence + 1:
                self._apply([part], apply)
                self.counts["increments"] += 1
            else:
                is_behind = True
                self.counts["increments_out_of_turn"] += 1
        if is_behind:  # unless what the last snapshot leads to has a gap of its own
            tried, self._tried = self._tried, (self.sequence, dict(self._log.committed("parameters").get("parameters", {})))
            if tried != self._tried:
                _logger.warning("increment %d of the parameters is missing: back to the last snapshot", self.sequence + 1)
                self.counts["catch_ups"] += 1
                self._resume()

    def _take_snapshot(self, part: ParameterPart, apply: Apply) -> None:
        if part.sequence < self.sequence:
            return
        if part.part != len(self._snapshot) or (self._snapshot and self._snapshot[0].sequence != part.sequence):
            self._snapshot = []
        if part.part == len(self._snapshot):
            self._snapshot.append(part)
        if len(self._snapshot) == part.of:
            parts, self._snapshot = self._snapshot, []
            self._apply(parts, apply, whole=True)
            self.counts["snapshots"] += 1

    def _apply(self, parts: Sequence[ParameterPart], apply: Apply, *, whole: bool = False) -> None:
        """Apply parts that belong together; `whole` ones hold all rows that are not those of the run."""
        catalogue, users = self._engine.catalogue, self._engine.users
        columns = catalogue.rows.columns | users.columns
        pairs = [pair for part in parts for pair in (("items", part.items), ("users", part.users))]
        tables = [(kind, _rows(table, columns)) for kind, table in pairs if table is not None]
        new_users = sum(len(ids) for kind, (ids, _, _) in tables if kind == "users")
        users.make_room(new_users)
        catalogue.rows.make_room(0)

        def change() -> None:
            if whole:
                for kind in _PUBLISHED:
                    self._restore(kind, np.array(sorted(self._changed[kind]), np.int64))
            for kind, (ids, values, removed) in tables:
                self._restore(kind, removed)
                self._changed[kind].update(ids.tolist())
                if kind == "items":
                    self._keep_unknown(ids, values)
                    catalogue.set_rows(ids, values)
                else:
                    users.put(ids, values)
            self.sequence, self.event_ms = parts[-1].sequence, max(self.event_ms, parts[-1].event_ms)

        apply(change)
        self.counts["rows"] += sum(len(ids) for _, (ids, _, _) in tables)

    def _restore(self, kind: str, ids: Int) -> None:
        """Give rows the values of before any increment."""
        catalogue, users = self._engine.catalogue, self._engine.users
        (catalogue.rows if kind == "items" else users).restore(ids, _PUBLISHED[kind])
        self._changed[kind].difference_update(ids.tolist())
        if kind == "items":
            for item in ids.tolist():
                self._waiting.pop(item, None)
            if encoded := {item: self._encoded[item] for item in ids.tolist() if item in self._encoded}:
                rows = {name: np.concatenate([of[name] for of in encoded.values()]) for name in _OF_RANKER}
                catalogue.set_rows(np.array(list(encoded)), rows)

    def _keep_unknown(self, ids: Int, values: dict[str, NDArray[Any]]) -> None:
        unknown = np.flatnonzero(self._engine.catalogue.positions(ids.tolist()) == 0).tolist()
        for i in unknown:
            self._waiting[int(ids[i])] = {name: rows[i : i + 1] for name, rows in values.items()}

    def _skip(self, topic: str, record: Record, error: ContractError) -> None:
        self.counts[f"{topic}_unreadable"] += 1
        _logger.error("record %d of the topic %s is skipped: %s", record.offset, topic, error)


def _rows(table: ParameterTable, columns: dict[str, NDArray[Any]]) -> tuple[Int, dict[str, NDArray[Any]], Int]:
    """Return ids, their rows by column, and the ids whose rows are those of the run again."""
    ids, removed = (np.frombuffer(data, "<i8").astype(np.int64) for data in (table.ids, table.removed))
    rows = {
        name: np.frombuffer(data, columns[name].dtype).reshape(len(ids), *columns[name].shape[1:])
        for name, data in table.columns.items()
        if name in columns
    }
    return ids, rows, removed
