"""Inverted lists of fp16 vectors (faiss), how they are trained, and how many of them a search has to read.

faiss is told the number of threads by each thread that calls it, because that is what OpenMP takes it for.
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


faiss: Any = _faiss  # its own stubs leave out half of it
_EQUAL = 1e-6
"""Relative difference that sums of fp32 in another order have."""
_TIMED = 32
"""Queries that times are compared with."""
_told = local()
_ALL_BUT = ~(np.uint8(1) << np.arange(8, dtype=np.uint8))
"""Octets without one of their bits."""


class ListsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How lists are built and judged."""

    recall_min: float = 0.97
    """Share of the exact best that a search must find, over the sample; otherwise the exact index serves."""
    recall_margin: float = 0.005
    """Lists are read until the sample's recall is so much above `recall_min`, because other queries are other queries: of 300
    others, 200,000 x 64, recall was within .001 of the sample's."""
    time_ratio_max: float = 1.0
    """Median time of a search, by that of the exact one; above it the exact index serves."""
    lists_per_root: float = 1.0
    """Number of lists, by the square root of the number of items. Clustered vectors, 200,000 x 64, recall .98: 447 lists took
    .135 of exact search's time and 2.9 s to build, 894 took .131 and 5.2 s, 1,342 took .129 and 14 s."""
    training_rows_per_list: int = 64
    """Rows that k-means sees for each list; 256, faiss's default, took four times as long."""
    sample: int = 128
    """Queries that recall is measured with."""
    ladder: tuple[int, ...] = (100, 200, 300, 400, 500, 600, 800, 1000, 1400, 2000, 5000, 10000, 20000)
    """Numbers of results, ascending, for which a build finds how many lists to read. Recall is that of the first."""
    filter_margin: float = 8.0
    """Behind a filter so many times the results are read for as its share calls for, because survivors need not lie as all
    items do. Filters by topic on clustered vectors, 20 to 62 % left: recall .91-.96 at 1, .971-.981 at 6, .975-.984 at 8."""
    threads: int = 1
    """Threads of a build. A search has one."""

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
    """What a build came to."""

    items: int
    nlist: int
    """Lists."""
    nprobe: int
    """Lists that a search for the first of `ladder` reads."""
    recall: float
    """Share of the exact best that it finds, measured over the sample."""
    time_to_exact: float
    """Its median time by the exact search's, same queries in turn."""
    queries: str
    """Where the sample is from: `given`, `served` (real ones, the latest) or `items` (vectors of items)."""
    seconds: float
    """What the build took."""
    bytes: int
    """Of codes and ids in the lists and of the rows beside them, without the allocator's and the hash table's share."""
    serving: bool
    """False: recall or time missed what the configuration asks for, and the exact index serves."""


class _Desk(local):
    """What the searches of one thread read and write, one after the other. faiss's own Python makes all of it anew for each
    search, which takes a fifth of one: 112 µs and 90 for 500 of 100,000.
    """

    def __init__(self, index: Any) -> None:
        self._index, self._params = index, faiss.SearchParametersIVF()
        self._query = np.empty((1, index.d), np.float32)
        self._at_query = faiss.swig_ptr(self._query)
        self._bits, self._selector = np.zeros(0, np.uint8), None
        self._told: tuple[int, Any] = 0, None
        self._room(1)

    def _room(self, k: int) -> None:
        self._scores, self._slots = np.empty(k, np.float32), np.empty(k, np.int64)
        self._at_scores, self._at_slots = faiss.swig_ptr(self._scores), faiss.swig_ptr(self._slots)

    def search(
        self, query: NDArray[np.float32], k: int, nprobe: int, bits: NDArray[np.uint8] | None, exclude: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As `InvertedLists.search`."""
        if k > len(self._slots):
            self._room(k)
        told = nprobe, None if bits is None else self._selected(bits, exclude)
        if told != self._told:  # which takes longer than to copy the query
            self._params.nprobe, self._params.sel = self._told = told
        self._query[0] = query
        self._index.search_c(1, self._at_query, k, self._at_scores, self._at_slots, self._params)
        scores, slots = self._scores[:k].copy(), self._slots[:k].copy()
        if slots[-1] < 0:  # fewer were there
            scores, slots = scores[slots >= 0], slots[slots >= 0]
        return slots, scores

    def _selected(self, bits: NDArray[np.uint8], exclude: NDArray[np.int64]) -> Any:
        if len(bits) != len(self._bits):
            self._bits = np.empty_like(bits)
            self._selector = faiss.IDSelectorBitmap(self._bits)
        self._bits[:] = bits
        np.bitwise_and.at(self._bits, exclude >> 3, _ALL_BUT.take(exclude & 7))
        return self._selector


class InvertedLists:
    """Vectors by slot, in the list of the nearest of `nlist` centroids. One writes or many search, never both."""

    def __init__(self, sample: NDArray[np.float32], nlist: int, seed: int) -> None:
        """Trained on `sample` [n, D]."""
        width = sample.shape[1]
        kind, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        # Codes are the vectors themselves, not their distance from the centroid: a search then adds nothing up per list.
        self._faiss = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(width), width, nlist, kind, metric, False)
        self._faiss.cp.seed = seed
        self._faiss.cp.max_points_per_centroid = len(sample)  # it is a sample already
        self._faiss.cp.min_points_per_centroid = 1
        self._faiss.train(sample)
        self._faiss.set_direct_map_type(faiss.DirectMap.Hashtable)  # the one that rows can be taken out with
        self.centroids: NDArray[np.float32] = self._faiss.quantizer.reconstruct_n(0, nlist)
        self.nlist = nlist
        self.list_of = np.zeros(0, np.int32)
        """By slot [slots]; -1 for those that are not in."""
        self._sizes = np.zeros(nlist, np.int64)
        self._desk = _Desk(self._faiss)

    def __len__(self) -> int:
        return int(self._faiss.ntotal)

    @property
    def bytes(self) -> int:
        """Of codes and ids."""
        row = int(self._faiss.code_size) + np.dtype(np.int64).itemsize
        return len(self) * row + self.centroids.nbytes + self.list_of.nbytes

    def put(self, slots: NDArray[np.int64], vectors: NDArray[np.float32], *, threads: int = 1) -> None:
        """Add distinct slots [n], or put them in the place of what they held."""
        self.remove(slots)
        if not len(slots):
            return
        _use_threads(threads)
        slots, vectors = np.ascontiguousarray(slots), np.ascontiguousarray(vectors)
        nearest = np.ascontiguousarray(self._faiss.quantizer.search(vectors, 1)[1][:, 0])
        # `add_with_ids` would search the centroids once more.
        self._faiss.add_core(len(slots), faiss.swig_ptr(vectors), faiss.swig_ptr(slots), faiss.swig_ptr(nearest))
        if (top := int(slots.max())) >= len(self.list_of):
            grown = np.full(max(top + 1, len(self.list_of) * 3 // 2), -1, np.int32)
            grown[: len(self.list_of)] = self.list_of
            self.list_of = grown
        self.list_of[slots] = nearest
        np.add.at(self._sizes, nearest, 1)

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Take slots out; those that are not in do nothing."""
        slots = slots[slots < len(self.list_of)]
        slots = np.ascontiguousarray(slots[self.list_of[slots] >= 0])
        if len(slots):
            self._faiss.remove_ids(faiss.IDSelectorArray(len(slots), faiss.swig_ptr(slots)))
            np.subtract.at(self._sizes, self.list_of[slots], 1)
            self.list_of[slots] = -1

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        nprobe: int,
        bits: NDArray[np.uint8] | None = None,
        exclude: NDArray[np.int64] = NONE,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Slots and scores of the best in the `nprobe` lists nearest to `query` [D].

        `bits` [slots / 8] says which slots may come back, all without it; those in `exclude` [x] may not.
        """
        _use_threads(1)
        return self._desk.search(query, k, nprobe, bits, exclude)

    def sizes(self) -> NDArray[np.int64]:
        """How many slots each list [nlist] holds."""
        return self._sizes

    def counts(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of `slots` each list [nlist] holds."""
        return np.bincount(self.list_of[slots], minlength=self.nlist)

    def order(self, query: NDArray[np.float32]) -> NDArray[np.int64]:
        """The lists [nlist], nearest to `query` [D] first."""
        return np.argsort(-(self.centroids @ query), kind="stable")


class Built(NamedTuple):
    """Lists and how many of them to read."""

    lists: InvertedLists
    nprobe: dict[int, int]
    """By number of results, ascending."""
    filter_margin: float
    report: BuildReport

    def probes(self, query: NDArray[np.float32], k: int, survivors: NDArray[np.int64] | None) -> int | None:
        """Lists to read for `k` results; `survivors` [nlist] is how many of each list a filter lets through. None: too many.

        Behind a filter the k-th result is further down among all items: so far that, at the share of survivors in the lists
        that are read for it, `k` survive, and by `filter_margin` further.
        """
        if survivors is None:
            return next((nprobe for results, nprobe in self.nprobe.items() if k <= results), None)
        order = self.lists.order(query)
        items, survived = np.cumsum(self.lists.sizes()[order]), np.cumsum(survivors[order])
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
    """Lists over `vectors` [n, D] of `slots` [n], measured with `queries` [s, D]. Takes seconds: about 3 for 200,000 x 64."""
    started = perf_counter()
    _use_threads(config.threads)
    rng = np.random.default_rng(seed)
    nlist = max(1, min(len(vectors), round(config.lists_per_root * np.sqrt(len(vectors)))))
    trained_on = min(len(vectors), nlist * config.training_rows_per_list)
    lists = InvertedLists(vectors[rng.choice(len(vectors), trained_on, replace=False)], nlist, seed)
    lists.put(slots, vectors, threads=config.threads)
    ks = [k for k in config.ladder if k < len(vectors)] or [len(vectors)]
    nprobe, bounds = _enough(lists, slots, vectors, queries, ks, config)
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
    """Tell faiss how many threads the calling thread may use from now on."""
    if getattr(_told, "n", None) != n:
        faiss.omp_set_num_threads(n)
        _told.n = n


def _enough(
    lists: InvertedLists,
    slots: NDArray[np.int64],
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    ks: list[int],
    config: ListsConfig,
) -> tuple[dict[int, int], list[float]]:
    """Lists to read for recall and margin, by number of results; and the exact score of each query's last of the first.

    No search of lists is needed: it is known in which list each of the exact best is.
    """
    place = np.empty((len(queries), ks[-1]), np.int32)  # of the list of each result, in the query's order of lists
    ids, rank, bounds = np.arange(len(vectors)), np.empty(lists.nlist, np.int32), []
    for row, query in zip(place, queries, strict=True):
        found = best(vectors @ query, ids, ks[-1])
        rank[lists.order(query)] = np.arange(lists.nlist)
        row[:] = rank[lists.list_of[slots[found.ids]]]
        bounds.append(float(found.scores[ks[0] - 1]))
    aim = min(1.0, config.recall_min + config.recall_margin)
    return {k: int(np.quantile(place[:, :k], aim, method="higher")) + 1 for k in ks}, bounds


def _recall(
    lists: InvertedLists,
    slots: NDArray[np.int64],
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    bounds: list[float],
    k: int,
    nprobe: int,
) -> float:
    """Share of the exact best `k` that a search finds. What scores as well as the k-th counts: equals stand for each other."""
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
    for query in queries[:_TIMED]:
        start = perf_counter()
        lists.search(query, k, nprobe)
        between = perf_counter()
        best(vectors @ query, ids, k)
        ours.append(between - start)
        exact.append(perf_counter() - between)
    return float(np.median(ours) / np.median(exact))
