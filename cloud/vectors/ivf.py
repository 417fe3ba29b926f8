"""The default index of one machine: inverted lists where they are good enough, exact search where they are not.

A search takes the first of these that holds:

1. exact over the survivors, when filter and exclusions leave at most `exact_share` of the items;
2. exact over all, while there are too few items for lists, before the first build is done, and when the last build missed the
   recall or the time that the configuration asks for;
3. lists, as many as the last build found to be enough for so many results and exclusions, or for the more that a filter makes
   of them;
4. exact over all, when that would be more than was measured or all lists, or when they held fewer than asked for.

Writes take turns with searches, and change lists and rows together. A fresh segment that is searched beside the lists and
folded in later would spare the turns, but each search would pay: 56 us with 200 rows in the segment and 83 us with 2,000, where
putting a row into 512 lists and taking it out again takes 16 us once.
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

_log = logging.getLogger(__name__)
_KEPT_SHARE = 0.25


class IvfConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An index of lists over rows."""

    lists: ListsConfig = msgspec.field(default_factory=ListsConfig)
    """How lists are built and judged."""
    exact_below: int = 20_000
    """With fewer items there are no lists. Their time by exact search's, the best 100 of clustered vectors x 64: .91 with
    10,000 items, .69 with 20,000, .44 with 50,000."""
    exact_share: float = 0.1
    """Filter and exclusions that leave at most this share of the items make the search exact."""
    rebuild_share: float = 0.25
    """Lists are built anew once so many rows changed, by the number of items then."""
    swap_rows: int = 512
    """New lists replace the old when at most so many changes are left to repeat in them; searches wait for those."""
    masks_max: int = 64
    """Filters whose answer is kept, at 1 to 9 bytes an item each."""
    queries_kept: int = 256
    """The latest queries, kept to measure recall with once there are a quarter of them."""
    counts_share: float = 0.05
    """How a filter's survivors lie in the lists is counted anew when their number changed by this share."""
    seed: int = 0
    """Of the samples and of k-means."""

    def __post_init__(self) -> None:
        if min(self.exact_below, self.swap_rows, self.masks_max, self.queries_kept) < 1:
            raise ValueError("Expected exact_below, swap_rows, masks_max and queries_kept >= 1")
        if not 0 <= self.exact_share <= 1 or self.rebuild_share <= 0:
            raise ValueError("Expected exact_share in 0..1 and rebuild_share > 0")


class IvfIndex(VectorIndex):
    """Inverted lists over rows. Builds itself in a thread of its own when it has grown or changed enough.

    Scores of lists are those of vectors rounded to fp16; equal scores come in no order.
    """

    def __init__(self, config: IvfConfig | None = None) -> None:
        self._config = config or IvfConfig()
        self._rows, self._lock, self._closed = IndexRows(self._config.masks_max), ReadWriteLock(), False
        self._built: Built | None = None
        self._changes = 0  # since the last build began
        self._journal: list[NDArray[np.int64]] | None = None  # slots that changed while a build is under way
        self._building, self._thread_lock, self._thread = Lock(), Lock(), Thread()
        self._queries = np.zeros((0, 0), np.float32)  # the latest, in a ring
        self._asking, self._asked = count(), -1

    @property
    def report(self) -> BuildReport | None:
        """Of the last build; None before the first."""
        return self._built.report if self._built else None

    def upsert(self, ids: NDArray[np.int64], vectors: NDArray[np.floating], attributes: Attributes) -> None:
        """As `VectorIndex.upsert`. May start a build, and does not wait for it."""
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
                self._note(slots)
        self._build_if_due()

    def delete(self, ids: NDArray[np.int64]) -> None:
        """As `VectorIndex.delete`. May start a build, and does not wait for it."""
        with self._lock.write():
            self._open()
            slots = self._rows.delete(np.asarray(ids, np.int64))
            if self._built:
                self._built.lists.remove(slots)
            self._note(slots)
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
        """As `VectorIndex.search`; how is said at the top of the module."""
        with self._lock.read():
            self._open()
            query = checked_query(query, self._rows.width)
            self._keep(query)
            slots, mask = NONE, self._rows.mask(where)
            if len(exclude):
                slots = self._rows.slots_of(np.asarray(exclude, np.int64))
                slots = slots[slots >= 0]
            if (built := self._built) is None or not built.report.serving:
                return self._rows.exact(query, k, mask, slots)
            if k <= 0 or mask.count - len(slots) <= self._config.exact_share * len(self._rows):
                return self._rows.exact(query, k, mask, slots)
            nprobe = built.probes(query, k + len(slots), self._survivors(built.lists, mask))
            if nprobe is not None and nprobe < built.lists.nlist:
                bits = mask.bits if len(slots) or mask.count < len(self._rows) else None
                found, scores = built.lists.search(query, k, nprobe, bits, slots)
                if len(found) == k:
                    return Found(self._rows.ids.take(found), scores)
            return self._rows.exact(query, k, mask, slots)

    def rebuild(self, queries: NDArray[np.floating] | None = None) -> BuildReport:
        """Build the lists anew and put them in place of the old; searches and writes go on meanwhile.

        Recall is measured with `queries` [s, D] like those to come (vectors of users), with the latest that were served when
        none are given, and with vectors of items when there were too few. Raises `RowsError` when there are no items,
        `WidthError`, `IndexUnavailableError`.
        """
        config = self._config
        with self._building:
            with self._lock.write():
                self._open()
                self._journal, self._changes, high = [], 0, self._rows.high
            try:
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
                while not self._swap(built):
                    pass
            finally:
                with self._lock.write():
                    self._journal = None
            return built.report

    def wait(self) -> None:
        """Wait for a build that is under way in the background."""
        with self._thread_lock:
            thread = self._thread
        if thread.ident is not None:
            thread.join()

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """Forget the rows, after a build that is under way."""
        with self._lock.write():
            self._closed = True
        self.wait()
        with self._building, self._lock.write():
            self._rows, self._built = IndexRows(1), None

    def _open(self) -> None:
        if self._closed:
            raise_closed("the index of lists")

    def _note(self, slots: NDArray[np.int64]) -> None:
        self._changes += len(slots)
        if self._journal is not None:
            self._journal.append(slots)

    def _keep(self, query: NDArray[np.float32]) -> None:
        if self._queries.shape[1] != len(query):
            self._queries = np.zeros((self._config.queries_kept, len(query)), np.float32)
        self._asked = asked = next(self._asking)
        self._queries[asked % len(self._queries)] = query

    def _survivors(self, lists: InvertedLists, mask: Mask) -> NDArray[np.int64] | None:
        """How many of each list pass, about; None when all do."""
        if mask.count == len(self._rows):
            return None
        kept = mask.by_list
        if kept is None or kept[0] is not lists or abs(kept[1] - mask.count) > self._config.counts_share * mask.count:
            mask.by_list = kept = lists, mask.count, lists.counts(mask.slots())
        return kept[2]

    def _copy(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Those of `slots` that hold a row, and their vectors; writes wait for a small part at a time."""
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
        rng = np.random.default_rng(self._config.seed)
        if queries is not None:
            sample, origin = np.stack([checked_query(query, vectors.shape[1]) for query in queries]), "given"
        elif self._asked + 1 >= _KEPT_SHARE * len(self._queries) > 0:
            sample, origin = self._queries[: self._asked + 1].copy(), "served"
        else:
            sample, origin = vectors, "items"
        most = min(len(sample), self._config.lists.sample)
        return sample[rng.choice(len(sample), most, replace=False)], origin

    def _swap(self, built: Built) -> bool:
        """Repeat in `built` what changed meanwhile; True when it serves, False when there was too much to let searches wait."""
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
                _log.exception("the lists could not be built anew; the old ones or the exact index serve")
