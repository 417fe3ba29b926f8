"""The index of lists beside exact search: recall and time, with filters, while it changes, and what it holds.

`python -m benchmarks.retrieval --json FILE`. Times are medians in milliseconds of queries that no build has seen, one thread,
each answered by all in turn. At the top are the figures of clustered vectors, in `uniform` those of vectors without any
structure::

    recall_at_100             share of the exact best 100 that a search finds
    time_to_exact             its time by that of the faster exact search, this package's or faiss's; ms, p99_ms; exact_ms of
                              this package's
    peers.faiss_flat          ms of faiss's own exact index, and to_exact: by exact_ms
    build                     the index's own report: nlist, nprobe, recall on its sample, time_to_exact, seconds, bytes,
                              serving (false: lists missed their recall or their time, and the exact index serves)
    build_s, bytes            of it

Of clustered vectors alone::

    filtered_recall.SHARE     recall behind a filter that leaves such a share of the items, whatever their vectors
    filtered.SHARE            ms, exact_ms, time_to_exact of it, by this package's exact search
    filtered_by_topic         recall, ms, exact_ms, time_to_exact, share of a filter that leaves whole topics
    excluded                  the same without the items of 300 that the query has seen, its best
    insert_to_visible_s       from the call of an upsert of one item to the end of the first search that finds it, the longest
                              of 300, while another thread searches and a third rebuilds the lists; insert_to_visible_p50_s
    during_rebuild            p50_ms, p99_ms of those other searches; before_rebuild: of the same without build and inserts
    inserts_per_s             in batches of 1,000; inserts_single_per_s: one a call; deletes_per_s, deletes_single_per_s
    resident_bytes            memory that the process holds more with the index in it than before
    memory_per_item           the same by item
    vectors                   which they are

Clustered vectors are made, not taken from anybody: 2,000 topics, of sizes that follow Zipf's law, are points of a space of
taste with 16 dimensions. An item is its topic and noise there, turned into all dimensions, with noise of its own and a length
that varies by a fifth, as popularity makes it. A user's query is the mean of three topics of the same law with the same noise:
near no item in particular. Uniform vectors are normal in every dimension, items and queries: nothing is near anything, so
inverted lists have nothing to find.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.command import command_parser, count, figure_table, from_options, one_line_errors
from benchmarks.errors import BenchmarkError
from benchmarks.latency.timed import milliseconds
from pocketrank.cloud.vectors.exact import ExactIndex
from pocketrank.cloud.vectors.index import ANY, NONE, AttributeFilter, Attributes, VectorIndex
from pocketrank.cloud.vectors.ivf import IvfConfig, IvfIndex
from pocketrank.sdk_demo.cli.output import JsonTarget
from pocketrank.sdk_demo.cli.stages import stages

__all__ = ["RetrievalExtent", "clustered", "main", "measure", "print_table", "uniform"]

_HELP = """\
Time and recall of the index of lists beside exact search, with filters, while it changes, and what it holds. Some two minutes.

  python -m benchmarks.retrieval --json runs/bench/retrieval.json
  python -m benchmarks.retrieval --items 1000000
"""

Floats = NDArray[np.float32]
Progress = Callable[[str, float], None]

_K = 100
_TOPICS, _TASTE, _ZIPF, _NOISE, _OWN, _LENGTH, _MIXED = 2000, 16, 1.2, 0.6, 0.15, 0.2, 3
_SHARES = {"1%": (1,), "10%": (1, 2), "50%": (1, 2, 3)}
"""Categories that together hold such a share of the items."""
_EDGES = (0.01, 0.1, 0.5)
_SEEN = 300
_BATCH, _SINGLE = 1000, 2000


class RetrievalExtent(NamedTuple):
    """Extent of the measurement."""

    items: int = 200_000
    width: int = 64
    queries: int = 300
    inserts: int = 300
    seed: int = 0


class VectorSet(NamedTuple):
    """Items and who asks for them."""

    vectors: Floats  # [n, D]
    topic: NDArray[np.int64]  # [n]
    sample: Floats  # [s, D] queries for the build
    queries: Floats  # [q, D] others


def clustered(extent: RetrievalExtent) -> VectorSet:
    """Topics in a space of taste, as the module says."""
    rng = np.random.default_rng(extent.seed)
    topics = rng.normal(size=(_TOPICS, _TASTE))
    weight = 1 / np.arange(1, _TOPICS + 1) ** _ZIPF
    turn = rng.normal(size=(_TASTE, extent.width)) / np.sqrt(_TASTE)

    def spread(taste: NDArray[np.float64]) -> Floats:
        taste = taste + _NOISE * rng.normal(size=taste.shape)
        made = taste @ turn + _OWN * rng.normal(size=(len(taste), extent.width))
        made *= np.exp(_LENGTH * rng.normal(size=(len(taste), 1))) / np.linalg.norm(made, axis=1, keepdims=True)
        return np.asarray(made.astype(np.float16), np.float32)

    def drawn(*shape: int) -> NDArray[np.int64]:
        return rng.choice(np.arange(_TOPICS), shape, p=weight / weight.sum())

    topic = drawn(extent.items)
    asked = [spread(topics[drawn(extent.queries, _MIXED)].mean(1)) for _ in range(2)]
    return VectorSet(spread(topics[topic]), topic, *asked)


def uniform(extent: RetrievalExtent) -> VectorSet:
    """Normal in every dimension."""
    rng = np.random.default_rng(extent.seed)
    made = [rng.normal(size=(n, extent.width)).astype(np.float32) for n in (extent.items, extent.queries, extent.queries)]
    return VectorSet(made[0], np.zeros(extent.items, np.int64), made[1], made[2])


def measure(extent: RetrievalExtent, progress: Progress) -> dict[str, Any]:
    """The report. Raises `BenchmarkError` for an extent that cannot be measured."""
    if extent.items < 10 * _BATCH:
        raise BenchmarkError("--items", f"{10 * _BATCH} at least", str(extent.items))
    world = clustered(extent)
    attributes = _attributes(world, extent)
    progress("clustered: build", 0)
    before = _resident()
    lists = _built(world, attributes)
    resident = _resident() - before
    exact = ExactIndex.over(world.vectors, attributes)
    progress("clustered: search", 0)
    report = _beside(world, lists, exact) | {"vectors": "clustered"}
    filtered = {share: _pair(world, lists, exact, AttributeFilter(categories=codes)) for share, codes in _SHARES.items()}
    report["filtered_recall"] = {share: found.pop("recall") for share, found in filtered.items()}
    report["filtered"] = filtered
    topics, share = _some_topics(world)
    report["filtered_by_topic"] = _pair(world, lists, exact, AttributeFilter(authors=topics)) | {"share": share}
    report["excluded"] = _pair(world, lists, exact, ANY, seen=_SEEN)
    progress("clustered: changes", 0)
    report |= _visible(world, lists, extent)
    report |= _writes(world, lists, attributes)
    report |= {"resident_bytes": resident, "memory_per_item": resident / extent.items}
    lists.close()
    progress("uniform: build and search", 0)
    world = uniform(extent)
    lists = _built(world, attributes)
    report["uniform"] = _beside(world, lists, ExactIndex.over(world.vectors, attributes))
    lists.close()
    return report | {"config": extent._asdict()}


def _attributes(world: VectorSet, extent: RetrievalExtent) -> Attributes:
    """Categories whatever the vector, authors by topic."""
    draw = np.random.default_rng(extent.seed + 1).random(extent.items)
    category = (np.digitize(draw, _EDGES) + 1).astype(np.int32)
    return Attributes.unknown(extent.items)._replace(category=category, author=world.topic + 1)


def _built(world: VectorSet, attributes: Attributes) -> IvfIndex:
    index = IvfIndex(IvfConfig(exact_below=len(world.vectors), rebuild_share=1e9))  # only `rebuild` builds
    index.upsert(np.arange(len(world.vectors)), world.vectors, attributes)
    index.rebuild(world.sample)
    return index


def _beside(world: VectorSet, lists: IvfIndex, exact: ExactIndex) -> dict[str, Any]:
    faiss.omp_set_num_threads(1)
    flat = faiss.IndexFlatIP(world.vectors.shape[1])
    flat.add(world.vectors)
    report = _pair(world, lists, exact, ANY, peer=lambda query: flat.search(query[None], _K))
    assert lists.report is not None
    peer_ms = report.pop("peer_ms")
    build = lists.report._asdict()
    return {
        "recall_at_100": report.pop("recall"),
        **report,
        "time_to_exact": report["ms"] / min(peer_ms, report["exact_ms"]),
        "peers": {"faiss_flat": {"ms": peer_ms, "to_exact": peer_ms / report["exact_ms"]}},
        "build": build,
        "build_s": build["seconds"],
        "bytes": build["bytes"],
    }


def _pair(
    world: VectorSet,
    lists: VectorIndex,
    exact: VectorIndex,
    where: AttributeFilter,
    *,
    seen: int = 0,
    peer: Callable[[Floats], object] | None = None,
) -> dict[str, Any]:
    """Both indexes, and the peer, query by query in turn."""
    times: dict[str, list[int]] = {"lists": [], "exact": [], "peer": []}
    hits = wanted = 0
    for number, query in enumerate(world.queries):
        exclude = exact.search(query, seen).ids if seen else NONE
        start = time.perf_counter_ns()
        found = lists.search(query, _K, where=where, exclude=exclude)
        between = time.perf_counter_ns()
        right = exact.search(query, _K, where=where, exclude=exclude)
        times["exact"].append(time.perf_counter_ns() - between)
        times["lists"].append(between - start)
        if peer is not None:
            start = time.perf_counter_ns()
            peer(query)
            times["peer"].append(time.perf_counter_ns() - start)
        hits, wanted = hits + len(np.intersect1d(found.ids, right.ids)), wanted + len(right.ids)
        if not number:
            for of in times.values():
                of.clear()  # the first query is a warm-up
    ours, exact_ms = milliseconds(times["lists"]), milliseconds(times["exact"])["p50_ms"]
    report = {
        "recall": hits / wanted,
        "time_to_exact": ours["p50_ms"] / exact_ms,
        "ms": ours["p50_ms"],
        "p99_ms": ours["p99_ms"],
        "exact_ms": exact_ms,
    }
    return report | ({"peer_ms": milliseconds(times["peer"])["p50_ms"]} if peer else {})


def _some_topics(world: VectorSet) -> tuple[tuple[int, ...], float]:
    """Authors of whole topics, from a middling one on, that hold more than a tenth of the items."""
    sizes = np.bincount(world.topic, minlength=_TOPICS)[3:]
    many = int(np.searchsorted(np.cumsum(sizes), len(world.topic) * 0.2)) + 1
    return tuple(range(4, 4 + many)), float(sizes[:many].sum() / len(world.topic))


def _visible(world: VectorSet, lists: IvfIndex, extent: RetrievalExtent) -> dict[str, Any]:
    """Time inserts of one item each, while other threads search and rebuild the lists."""

    def search_until(done: threading.Event) -> list[int]:
        times: list[int] = []
        while not done.is_set():
            start = time.perf_counter_ns()
            lists.search(world.queries[len(times) % len(world.queries)], _K)
            times.append(time.perf_counter_ns() - start)
        return times

    quiet = threading.Event()
    timer = threading.Timer(1.0, quiet.set)
    timer.start()
    before = search_until(quiet)
    done, during = threading.Event(), list[int]()
    searching = threading.Thread(target=lambda: during.extend(search_until(done)))
    building = threading.Thread(target=lambda: lists.rebuild(world.sample))
    searching.start()
    building.start()
    waits, first = [], len(world.vectors)
    for number in range(extent.inserts):
        query = world.queries[number % len(world.queries)]
        start = time.perf_counter()
        lists.upsert(np.array([first + number]), (10 + number) * query[None], Attributes.unknown(1))
        while first + number not in lists.search(query, _K).ids:
            if time.perf_counter() - start > 60:
                raise BenchmarkError("an insert", "to be seen within a minute", "none")
        waits.append(time.perf_counter() - start)
    building.join()
    done.set()
    searching.join()
    lists.delete(np.arange(first, first + extent.inserts))
    return {
        "insert_to_visible_s": max(waits),
        "insert_to_visible_p50_s": float(np.median(waits)),
        "before_rebuild": milliseconds(before),
        "during_rebuild": milliseconds(during),
    }


def _writes(world: VectorSet, lists: IvfIndex, attributes: Attributes) -> dict[str, float]:
    """Items deleted and put in again, in batches and one by one."""
    figures = {}
    for name, size, rows in (("", _BATCH, min(20 * _BATCH, len(world.vectors))), ("_single", 1, _SINGLE)):
        parts = [np.arange(start, start + size) for start in range(0, rows, size)]
        start = time.perf_counter()
        for ids in parts:
            lists.delete(ids)
        between = time.perf_counter()
        for ids in parts:
            lists.upsert(ids, world.vectors[ids], attributes.take(ids))
        figures[f"inserts{name}_per_s"] = rows / (time.perf_counter() - between)
        figures[f"deletes{name}_per_s"] = rows / (between - start)
    return figures


def _resident() -> int:
    """Return the bytes of memory that this process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def print_table(console: Console, report: dict[str, Any]) -> None:
    """Print the report as tables."""
    title = f"{report['config']['items']} x {report['config']['width']}, the best {_K}"
    table = figure_table(title, "recall", "ms", "exact ms", "x exact")

    def row(name: str, recall: float, of: dict[str, Any]) -> None:
        table.add_row(name, f"{recall:.4f}", f"{of['ms']:.3f}", f"{of['exact_ms']:.3f}", f"{of['time_to_exact']:.2f}")

    row("clustered", report["recall_at_100"], report)
    for share, of in report["filtered"].items():
        row(f"  a filter leaves {share}", report["filtered_recall"][share], of)
    by_topic = report["filtered_by_topic"]
    row(f"  a filter leaves topics, {by_topic['share']:.0%}", by_topic["recall"], by_topic)
    row(f"  {_SEEN} seen items excluded", report["excluded"]["recall"], report["excluded"])
    row("uniform", report["uniform"]["recall_at_100"], report["uniform"])
    console.print(table)
    build = report["build"]
    console.print(
        f"{build['nprobe']} of {build['nlist']} lists read. Built in {report['build_s']:.1f} s; "
        f"{report['bytes'] / 1e6:.0f} MB, {report['memory_per_item']:.0f} bytes an item resident.\n"
        f"An insert is seen within {report['insert_to_visible_s'] * 1e3:.0f} ms at most; "
        f"{report['inserts_per_s']:.0f} inserts a second in batches, {report['inserts_single_per_s']:.0f} one by one; "
        f"{report['deletes_per_s']:.0f} deletions, {report['deletes_single_per_s']:.0f} one by one.\n"
        f"Search during a rebuild: p99 {report['during_rebuild']['p99_ms']:.1f} ms, "
        f"before it {report['before_rebuild']['p99_ms']:.1f} ms.",
        highlight=False,
    )


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the options in `arguments`."""
    defaults = RetrievalExtent()
    parser = command_parser("retrieval", _HELP)
    parser.add_argument("--items", type=int, default=defaults.items, help="in the index [%(default)s]")
    parser.add_argument("--width", type=count, default=defaults.width, help="of a vector [%(default)s]")
    parser.add_argument("--queries", type=count, default=defaults.queries, help="for each figure [%(default)s]")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of vectors and attributes [%(default)s]")
    options = parser.parse_args(arguments)
    target = JsonTarget(options.json)
    with stages(target.console) as progress:
        report = measure(from_options(RetrievalExtent, options), progress)
    target.write(report)
    print_table(target.console, report)


if __name__ == "__main__":
    sys.exit(main())
