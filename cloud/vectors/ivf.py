"""The default index of one machine: inverted lists where they are good enough, exact search where they are not.

A search uses the first of these whose condition holds:

1. Exact search of the items that pass, when filter and exclusions leave at most `exact_share` of the items.
2. Exact search, while there are too few items for lists, before the first build is done, and when the last build missed the
   recall or the time that the configuration asks for.
3. Inverted lists. The last build measured how many of them are enough for a number of results; exclusions and filters raise
that
   number.
4. Exact search, when more results are needed than were measured, when all lists would be read, or when the lists that were read
   held fewer items than asked for.

Writes take turns with searches, and change lists and rows together. A fresh segment that is searched beside the lists and
merged later would save the turns, but each search would pay for it: 56 µs with 200 rows in the segment and 83 µs with 2,000.
Adding a row to 512 lists and removing it again takes 16 µs once.
"""

from __future__ import annotations

import logging
from itertools import count
from threading import Lock, Thread

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.vectors.index import (
    ANY,
    NONE,
    AttributeFilter,
    Attributes,
    Found,
    IndexUnavailableError,
    RowsError,
    VectorIndex,
    checked_query,
    checked_rows,
    raise_closed,
)
from pocketrank.cloud.vectors.lists import BuildReport, Built, InvertedLists, ListsConfig, build_lists
from pocketrank.cloud.vectors.locks import ReadWriteLock
from pocketrank.cloud.vectors.rows import IndexRows, Mask, parts

__all__ = ["IvfConfig", "IvfIndex"]

_logger = logging.getLogger(__name__)
_QUERIES_SHARE_MIN = 0.25
"""Share of `queries_kept` from which the queries served are the sample of a build."""


class IvfConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When lists are built, and when they are used."""

    lists: ListsConfig = msgspec.field(default_factory=ListsConfig)
    """How lists are built and measured."""
    exact_below: int = 20_000
    """Number of items from which there are lists. Time of lists relative to exact search, for the best 100 of clustered vectors
    x 64: 0.91 with 10,000 items, 0.69 with 20,000, 0.44 with 50,000."""
    exact_share: float = 0.1
    """A search is exact when its filter and exclusions leave at most this share of the items."""
    rebuild_share: float = 0.25
    """Lists are rebuilt once the number of changed rows reaches this share of the items."""
    swap_rows: int = 512
    """New lists replace the old ones once at most so many changes are left to repeat in them, for which searches wait."""
    masks_max: int = 64
    """Number of filters whose masks are kept, at 1 to 9 bytes per item each."""
    queries_kept: int = 256
    """Number of latest queries that are kept to measure recall with; a quarter of them is enough."""
    counts_share: float = 0.05
    """The items of each list that pass a filter are counted again when their total changed by this share."""
    seed: int = 0
    """Seed of the samples and of k-means."""

    def __post_init__(self) -> None:
        if min(self.exact_below, self.swap_rows, self.masks_max, self.queries_kept) < 1:
            raise ValueError("Expected exact_below, swap_rows, masks_max and queries_kept >= 1")
        if not 0 <= self.exact_share <= 1 or self.rebuild_share <= 0:
            raise ValueError("Expected exact_share in 0..1 and rebuild_share > 0")


class IvfIndex(VectorIndex):
    """Inverted lists over rows. A thread builds them when the index has grown or changed enough.

    Scores from lists are those of vectors rounded to fp16. Equal scores are in no particular order.
    """

    def __init__(self, config: IvfConfig | None = None) -> None:
        self._config = config or IvfConfig()
        self._rows, self._lock, self._closed = IndexRows(self._config.masks_max), ReadWriteLock(), False
        self._built: Built | None = None
        self._changes = 0  # changed rows since the last build began
        self._journal: list[NDArray[np.int64]] | None = None  # slots that changed while a build is under way
        self._building, self._thread_lock, self._thread = Lock(), Lock(), Thread()
        self._queries = np.zeros((0, 0), np.float32)  # ring buffer of the latest queries
        self._asking, self._asked = count(), -1

    @property
    def report(self) -> BuildReport | None:
        """Report of the last build; None before the first."""
        return self._built.report if self._built else None

    def upsert(self, ids: NDArray[np.int64], vectors: NDArray[np.floating], attributes: Attributes) -> None:
        """See `VectorIndex.upsert`. May start a build, and does not wait for it."""
        rows = checked_rows(ids, vectors, attributes, self._rows.width)
        with self._lock.write():
            self._open()
            self._rows.reserve(rows[0], rows[1].shape[1])
        for part in parts(*rows):
            with self._lock.write():
                self._open()
                slots = self._rows.upsert(*part)
                if self._built:
                    self._built.lists.put(slots, part[1])
                self._log_changes(slots)
        self._build_if_due()

    def delete(self, ids: NDArray[np.int64]) -> None:
        """See `VectorIndex.delete`. May start a build, and does not wait for it."""
        with self._lock.write():
            self._open()
            slots = self._rows.delete(np.asarray(ids, np.int64))
            if self._built:
                self._built.lists.remove(slots)
            self._log_changes(slots)
        self._build_if_due()

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        where: AttributeFilter = ANY,
        exclude: NDArray[np.int64] = NONE,
        deadline_s: float | None = None,
    ) -> Found:
        """See `VectorIndex.search`, and the module for how it searches."""
        with self._lock.read():
            self._open()
            query = checked_query(query, self._rows.width)
            self._keep(query)
            slots, mask = NONE, self._rows.mask(where)
            if len(exclude):
                slots = self._rows.slots_of(np.asarray(exclude, np.int64))
                slots = slots[slots >= 0]
            # Exact search, where it is faster or lists are not good enough.
            if (built := self._built) is None or not built.report.serving:
                return self._rows.exact(query, k, mask, slots)
            if k <= 0 or mask.count - len(slots) <= self._config.exact_share * len(self._rows):
                return self._rows.exact(query, k, mask, slots)
            # Lists, unless more of them are needed than were measured.
            nprobe = built.probes(query, k + len(slots), self._survivors(built.lists, mask))
            if nprobe is not None and nprobe < built.lists.nlist:
                bits = mask.bits if len(slots) or mask.count < len(self._rows) else None
                found, scores = built.lists.search(query, k, nprobe, bits, slots)
                if len(found) == k:
                    return Found(self._rows.ids.take(found), scores)
            return self._rows.exact(query, k, mask, slots)

    def rebuild(self, queries: NDArray[np.floating] | None = None) -> BuildReport:
        """Build new lists and replace the old ones. Searches and writes continue meanwhile.

        Recall is measured with `queries` [s, D], which should be like those to expect (vectors of users). Without them it is
        measured with the latest that were served, and with vectors of items when there were too few. Raises `RowsError` when
        there are no items, `WidthError`, `IndexUnavailableError`.
        """
        config = self._config
        with self._building:
            with self._lock.write():
                self._open()
                self._journal, self._changes, high = [], 0, self._rows.high
            try:
                # Build from a copy; what changes meanwhile is in the journal.
                slots, vectors = self._copy(np.arange(high))
                if not len(slots):
                    raise RowsError("the index", "items to build lists over", "none")
                sample, origin = self._sample(vectors, queries)
                built = build_lists(slots, vectors, sample, origin=origin, config=config.lists, seed=config.seed)
                report = built.report._replace(
                    bytes=built.lists.bytes + self._rows.bytes,
                    serving=built.report.serving and len(slots) >= config.exact_below,
                )
                del vectors
                built = built._replace(report=report)
                # Repeat the changes in rounds, until few enough are left for the last round.
                while not self._swap(built):
                    pass
            finally:
                with self._lock.write():
                    self._journal = None
            return built.report

    def wait(self) -> None:
        """Wait for a build that runs in the background."""
        with self._thread_lock:
            thread = self._thread
        if thread.ident is not None:
            thread.join()

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """Free the rows, after a build that is under way."""
        with self._lock.write():
            self._closed = True
        self.wait()
        with self._building, self._lock.write():
            self._rows, self._built = IndexRows(1), None

    def _open(self) -> None:
        if self._closed:
            raise_closed("the index of lists")

    def _log_changes(self, slots: NDArray[np.int64]) -> None:
        self._changes += len(slots)
        if self._journal is not None:
            self._journal.append(slots)

    def _keep(self, query: NDArray[np.float32]) -> None:
        if self._queries.shape[1] != len(query):
            self._queries = np.zeros((self._config.queries_kept, len(query)), np.float32)
        self._asked = asked = next(self._asking)
        self._queries[asked % len(self._queries)] = query

    def _survivors(self, lists: InvertedLists, mask: Mask) -> NDArray[np.int64] | None:
        """Return about how many slots of each list pass; None when all do."""
        if mask.count == len(self._rows):
            return None
        kept = mask.by_list
        if kept is None or kept[0] is not lists or abs(kept[1] - mask.count) > self._config.counts_share * mask.count:
            mask.by_list = kept = lists, mask.count, lists.counts(mask.slots())
        return kept[2]

    def _copy(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return those of `slots` that hold a row, and their vectors. Writes wait for a small part at a time."""
        live, vectors = [], []
        for start in range(0, len(slots), self._config.swap_rows):
            with self._lock.read():
                self._open()
                part = slots[start : start + self._config.swap_rows]
                part = part[self._rows.live(part)]
                live.append(part)
                vectors.append(self._rows.vectors.take(part, 0))
        if not live:
            return NONE, np.zeros((0, 0), np.float32)
        return np.concatenate(live), np.concatenate(vectors)

    def _sample(self, vectors: NDArray[np.float32], queries: NDArray[np.floating] | None) -> tuple[NDArray[np.float32], str]:
        """Return the queries to measure with, and where they are from."""
        rng = np.random.default_rng(self._config.seed)
        if queries is not None:
            sample, origin = np.stack([checked_query(query, vectors.shape[1]) for query in queries]), "given"
        elif self._asked + 1 >= _QUERIES_SHARE_MIN * len(self._queries) > 0:
            sample, origin = self._queries[: self._asked + 1].copy(), "served"
        else:
            sample, origin = vectors, "items"
        size = min(len(sample), self._config.lists.sample)
        return sample[rng.choice(len(sample), size, replace=False)], origin

    def _swap(self, built: Built) -> bool:
        """Repeat the logged changes in `built`. Return True once it serves, False when searches would have waited too long."""
        with self._lock.write():
            self._open()
            journal = self._journal or []
            slots = np.unique(np.concatenate(journal)) if journal else NONE
            if len(slots) <= self._config.swap_rows:
                built.lists.remove(slots)
                live = slots[self._rows.live(slots)]
                built.lists.put(live, self._rows.vectors.take(live, 0))
                self._built = built
                return True
            self._journal = []
        live, vectors = self._copy(slots)
        built.lists.remove(slots)
        built.lists.put(live, vectors)
        return False

    def _due(self) -> bool:
        items = len(self._rows)
        return not self._closed and items >= self._config.exact_below and self._changes >= self._config.rebuild_share * items

    def _build_if_due(self) -> None:
        with self._thread_lock:
            if self._due() and not self._thread.is_alive():
                self._thread = Thread(target=self._build, name="pocketrank-index")
                self._thread.start()

    def _build(self) -> None:
        while self._due():
            try:
                self.rebuild()
            except IndexUnavailableError:
                return  # closed meanwhile
            except Exception:
                _logger.exception("the lists could not be rebuilt; the old lists or exact search serve")
