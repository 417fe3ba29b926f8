"""Inverted lists of fp16 vectors (faiss): how they are trained, and how many of them a search has to read.

Each thread that calls faiss sets the number of threads for itself, because OpenMP keeps that number per thread.
"""

from __future__ import annotations

from threading import local
from time import perf_counter
from typing import Any, NamedTuple

import faiss as _faiss
import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.vectors.index import NONE
from pocketrank.cloud.vectors.rows import best

__all__ = ["BuildReport", "Built", "InvertedLists", "ListsConfig", "build_lists"]

faiss: Any = _faiss  # its stubs are incomplete
_EQUAL = 1e-6
"""Relative difference between fp32 sums in different orders."""
_TIMED_QUERIES = 32
"""Number of queries that times are compared with."""
_omp = local()
"""`threads`: the number that this thread set last."""
_ALL_BUT_BIT = ~(np.uint8(1) << np.arange(8, dtype=np.uint8))
"""Bytes with all bits set but one."""


class ListsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How lists are built and measured."""

    recall_min: float = 0.97
    """Share of the exact best that a search must find, over the sample; otherwise exact search serves."""
    recall_margin: float = 0.005
    """Lists are read until the sample's recall is this much above `recall_min`, because that of other queries may be lower. For
    300 other queries, 200,000 x 64, it was within 0.001 of the sample's."""
    time_ratio_max: float = 1.0
    """Maximum median time of a search relative to exact search; above it exact search serves."""
    lists_per_root: float = 1.0
    """Number of lists relative to the square root of the number of items. Clustered vectors, 200,000 x 64, recall 0.98: 447
    lists took 0.135 of exact search's time and 2.9 s to build, 894 took 0.131 and 5.2 s, 1,342 took 0.129 and 14 s."""
    training_rows_per_list: int = 64
    """Rows per list that k-means is trained on; 256, faiss's default, took four times as long."""
    sample: int = 128
    """Maximum number of queries that recall is measured with."""
    ladder: tuple[int, ...] = (100, 200, 300, 400, 500, 600, 800, 1000, 1400, 2000, 5000, 10000, 20000)
    """Numbers of results, ascending, for which a build measures how many lists to read. Recall is reported for the first."""
    filter_margin: float = 8.0
    """Factor by which more results are read for behind a filter than its share of items calls for, because the items that pass
    may be spread over the lists in another way than all items. Filters by topic on clustered vectors that leave 20 to 62 %:
    recall 0.91-0.96 at 1, 0.971-0.981 at 6, 0.975-0.984 at 8."""
    threads: int = 1
    """Threads for a build. A search has one."""

    def __post_init__(self) -> None:
        if not 0 < self.recall_min <= 1 or self.recall_margin < 0 or self.filter_margin < 1:
            raise ValueError("Expected recall_min in 0..1, recall_margin >= 0 and filter_margin >= 1")
        if self.time_ratio_max <= 0 or self.lists_per_root <= 0:
            raise ValueError("Expected time_ratio_max and lists_per_root > 0")
        if min(self.training_rows_per_list, self.sample, self.threads, *self.ladder) < 1 or not self.ladder:
            raise ValueError("Expected training_rows_per_list, sample, threads and ladder >= 1")
        if sorted(set(self.ladder)) != list(self.ladder):
            raise ValueError(f"Expected ladder ascending, got {self.ladder}")


class BuildReport(NamedTuple):
    """Measurements of a build."""

    items: int
    nlist: int
    """Number of lists."""
    nprobe: int
    """Number of lists that a search for the first of `ladder` reads."""
    recall: float
    """Share of the exact best that such a search finds, over the sample."""
    time_to_exact: float
    """Median time of such a search relative to exact search, with the same queries in turn."""
    queries: str
    """Where the sample is from: `given`, `served` (the latest queries) or `items` (vectors of items)."""
    seconds: float
    """Time of the build."""
    bytes: int
    """Size of codes and ids in the lists and of the rows, without the overhead of the allocator and of hash tables."""
    serving: bool
    """Whether lists serve. False: recall or time missed what the configuration asks for, and exact search serves."""


class _SearchBuffers(local):
    """Buffers that the searches of one thread use one after the other.

    faiss's own Python wrapper allocates them for each search, which takes a fifth of its time: 112 µs instead of 90 for 500 of
    100,000.
    """

    def __init__(self, index: Any) -> None:
        self._index, self._params = index, faiss.SearchParametersIVF()
        self._query = np.empty((1, index.d), np.float32)
        self._at_query = faiss.swig_ptr(self._query)
        self._bits, self._selector = np.zeros(0, np.uint8), None
        self._params_set: tuple[int, Any] = 0, None
        self._room(1)

    def _room(self, k: int) -> None:
        self._scores, self._slots = np.empty(k, np.float32), np.empty(k, np.int64)
        self._at_scores, self._at_slots = faiss.swig_ptr(self._scores), faiss.swig_ptr(self._slots)

    def search(
        self, query: NDArray[np.float32], k: int, nprobe: int, bits: NDArray[np.uint8] | None, exclude: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `InvertedLists.search`."""
        if k > len(self._slots):
            self._room(k)
        params = nprobe, None if bits is None else self._selected(bits, exclude)
        if params != self._params_set:  # setting them takes longer than copying the query
            self._params.nprobe, self._params.sel = self._params_set = params
        self._query[0] = query
        self._index.search_c(1, self._at_query, k, self._at_scores, self._at_slots, self._params)
        scores, slots = self._scores[:k].copy(), self._slots[:k].copy()
        if slots[-1] < 0:  # the lists held fewer than k
            scores, slots = scores[slots >= 0], slots[slots >= 0]
        return slots, scores

    def _selected(self, bits: NDArray[np.uint8], exclude: NDArray[np.int64]) -> Any:
        if len(bits) != len(self._bits):
            self._bits = np.empty_like(bits)
            self._selector = faiss.IDSelectorBitmap(self._bits)
        self._bits[:] = bits
        np.bitwise_and.at(self._bits, exclude >> 3, _ALL_BUT_BIT.take(exclude & 7))
        return self._selector


class InvertedLists:
    """Vectors by slot, each in the list of the nearest of `nlist` centroids. One thread writes or many search, never both."""

    def __init__(self, sample: NDArray[np.float32], nlist: int, seed: int) -> None:
        """Trained on `sample` [n, D]."""
        width = sample.shape[1]
        kind, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        # Codes are the vectors themselves and not their difference from the centroid, so a search adds no term for each list.
        self._faiss = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(width), width, nlist, kind, metric, False)
        self._faiss.cp.seed = seed
        self._faiss.cp.max_points_per_centroid = len(sample)  # the sample is small already
        self._faiss.cp.min_points_per_centroid = 1
        self._faiss.train(sample)
        self._faiss.set_direct_map_type(faiss.DirectMap.Hashtable)  # the only one that supports removal
        self.centroids: NDArray[np.float32] = self._faiss.quantizer.reconstruct_n(0, nlist)
        self.nlist = nlist
        self.list_of = np.zeros(0, np.int32)
        """[slots] list of each slot; -1 for slots without a vector"""
        self.sizes = np.zeros(nlist, np.int64)
        """[nlist] number of slots in each list"""
        self._buffers = _SearchBuffers(self._faiss)

    def __len__(self) -> int:
        return int(self._faiss.ntotal)

    @property
    def bytes(self) -> int:
        """Size of codes, ids, centroids and the lists of slots."""
        row = int(self._faiss.code_size) + np.dtype(np.int64).itemsize
        return len(self) * row + self.centroids.nbytes + self.list_of.nbytes

    def put(self, slots: NDArray[np.int64], vectors: NDArray[np.float32], *, threads: int = 1) -> None:
        """Add the vectors of distinct slots [n], or replace them."""
        self.remove(slots)
        if not len(slots):
            return
        _use_threads(threads)
        slots, vectors = np.ascontiguousarray(slots), np.ascontiguousarray(vectors)
        nearest = np.ascontiguousarray(self._faiss.quantizer.search(vectors, 1)[1][:, 0])
        # `add_with_ids` would search the centroids a second time.
        self._faiss.add_core(len(slots), faiss.swig_ptr(vectors), faiss.swig_ptr(slots), faiss.swig_ptr(nearest))
        if (top := int(slots.max())) >= len(self.list_of):
            grown = np.full(max(top + 1, len(self.list_of) * 3 // 2), -1, np.int32)
            grown[: len(self.list_of)] = self.list_of
            self.list_of = grown
        self.list_of[slots] = nearest
        np.add.at(self.sizes, nearest, 1)

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Remove slots; those without a vector are ignored."""
        slots = slots[slots < len(self.list_of)]
        slots = np.ascontiguousarray(slots[self.list_of[slots] >= 0])
        if len(slots):
            self._faiss.remove_ids(faiss.IDSelectorArray(len(slots), faiss.swig_ptr(slots)))
            np.subtract.at(self.sizes, self.list_of[slots], 1)
            self.list_of[slots] = -1

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        nprobe: int,
        bits: NDArray[np.uint8] | None = None,
        exclude: NDArray[np.int64] = NONE,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return slots and scores of the best `k` in the `nprobe` lists nearest to `query` [D].

        `bits` [slots / 8] are the slots that may be returned, without those in `exclude` [x]. Without `bits`, all slots may be
        returned and `exclude` is ignored.
        """
        _use_threads(1)
        return self._buffers.search(query, k, nprobe, bits, exclude)

    def counts(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many of `slots` each list [nlist] holds."""
        return np.bincount(self.list_of[slots], minlength=self.nlist)

    def order(self, query: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the lists [nlist], nearest to `query` [D] first."""
        return np.argsort(-(self.centroids @ query), kind="stable")


class Built(NamedTuple):
    """Lists, and how many of them a search has to read."""

    lists: InvertedLists
    nprobe: dict[int, int]
    """Number of lists to read, by number of results in ascending order."""
    filter_margin: float
    report: BuildReport

    def probes(self, query: NDArray[np.float32], k: int, survivors: NDArray[np.int64] | None) -> int | None:
        """Return how many lists to read for `k` results; None when `k` is more than was measured.

        `survivors` [nlist] is the number of items in each list that a filter lets through; None without a filter. Behind a
        filter, more results are read for: so many that `k` of them pass, at the share of items that pass in the lists read,
        times `filter_margin`.
        """
        if survivors is None:
            return next((nprobe for results, nprobe in self.nprobe.items() if k <= results), None)
        order = self.lists.order(query)
        items, survived = np.cumsum(self.lists.sizes[order]), np.cumsum(survivors[order])
        for results, nprobe in self.nprobe.items():
            if results * survived[nprobe - 1] >= self.filter_margin * k * items[nprobe - 1]:
                return nprobe
        return None


def build_lists(
    slots: NDArray[np.int64],
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    *,
    origin: str,
    config: ListsConfig,
    seed: int = 0,
) -> Built:
    """Build lists over `vectors` [n, D] of `slots` [n], and measure them with `queries` [s, D].

    Takes about 3 seconds for 200,000 x 64. `origin` is reported as where the queries are from.
    """
    started = perf_counter()
    # Train centroids on a sample, then add all vectors.
    _use_threads(config.threads)
    rng = np.random.default_rng(seed)
    nlist = max(1, min(len(vectors), round(config.lists_per_root * np.sqrt(len(vectors)))))
    trained_on = min(len(vectors), nlist * config.training_rows_per_list)
    lists = InvertedLists(vectors[rng.choice(len(vectors), trained_on, replace=False)], nlist, seed)
    lists.put(slots, vectors, threads=config.threads)
    # How many lists each number of results needs: first from the exact results, then raised until a search finds enough.
    ks = [k for k in config.ladder if k < len(vectors)] or [len(vectors)]
    nprobe, bounds = _lists_needed(lists, slots, vectors, queries, ks, config)
    k = ks[0]
    recall = _recall(lists, slots, vectors, queries, bounds, k, nprobe[k])
    while recall < config.recall_min and nprobe[k] < nlist:
        nprobe = {k: min(nlist, nprobe + max(1, nprobe // 4)) for k, nprobe in nprobe.items()}
        recall = _recall(lists, slots, vectors, queries, bounds, k, nprobe[k])
    time_to_exact = _time_to_exact(lists, vectors, queries, k, nprobe[k])
    report = BuildReport(
        items=len(vectors),
        nlist=nlist,
        nprobe=nprobe[k],
        recall=recall,
        time_to_exact=time_to_exact,
        queries=origin,
        seconds=perf_counter() - started,
        bytes=lists.bytes,
        serving=recall >= config.recall_min and time_to_exact <= config.time_ratio_max,
    )
    return Built(lists, nprobe, config.filter_margin, report)


def _use_threads(n: int) -> None:
    """Set how many threads faiss may use from now on when this thread calls it."""
    if getattr(_omp, "threads", None) != n:
        faiss.omp_set_num_threads(n)
        _omp.threads = n


def _lists_needed(
    lists: InvertedLists,
    slots: NDArray[np.int64],
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    ks: list[int],
    config: ListsConfig,
) -> tuple[dict[int, int], list[float]]:
    """Return how many lists to read, by number of results, and the exact score of each query's `ks[0]`-th result.

    Lists need not be searched for this: it is known which list holds each of the exact best.
    """
    place = np.empty((len(queries), ks[-1]), np.int32)  # rank of the list of each result among the query's lists
    ids, rank, bounds = np.arange(len(vectors)), np.empty(lists.nlist, np.int32), []
    for row, query in zip(place, queries, strict=True):
        found = best(vectors @ query, ids, ks[-1])
        rank[lists.order(query)] = np.arange(lists.nlist)
        row[:] = rank[lists.list_of[slots[found.ids]]]
        bounds.append(float(found.scores[ks[0] - 1]))
    target = min(1.0, config.recall_min + config.recall_margin)
    return {k: int(np.quantile(place[:, :k], target, method="higher")) + 1 for k in ks}, bounds


def _recall(
    lists: InvertedLists,
    slots: NDArray[np.int64],
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    bounds: list[float],
    k: int,
    nprobe: int,
) -> float:
    """Return the share of the exact best `k` that a search finds. An item that scores as well as the k-th counts as found."""
    at = np.empty(int(slots.max()) + 1, np.int64)
    at[slots] = np.arange(len(slots))
    hits = 0
    for query, bound in zip(queries, bounds, strict=True):
        found, _ = lists.search(query, k, nprobe)
        hits += int(np.count_nonzero(vectors[at[found]] @ query >= bound - _EQUAL * abs(bound)))
    return hits / (k * len(queries))


def _time_to_exact(
    lists: InvertedLists, vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, nprobe: int
) -> float:
    ids = np.arange(len(vectors))
    ours, exact = [], []
    for query in queries[:_TIMED_QUERIES]:
        start = perf_counter()
        lists.search(query, k, nprobe)
        between = perf_counter()
        best(vectors @ query, ids, k)
        ours.append(between - start)
        exact.append(perf_counter() - between)
    return float(np.median(ours) / np.median(exact))
