"""How long a page's rows take from each embedding store, beside a plain array's `take`.

`python -m benchmarks.stores --json FILE`. All in one process and in turn, round after round, so that all meet the machine's
same moods; the Valkey servers are real ones on the loopback and share the machine. Ids are random, new ones each time, and so
are the rows' places: caches help as little as they would in serving.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.command import command_parser, count, from_options, one_line_errors
from benchmarks.errors import BenchmarkError
from benchmarks.latency.timed import Timed, milliseconds
from pocketrank.cloud.stores.opening import open_store
from pocketrank.sdk_demo.cli.output import JsonTarget, print_report
from tests.valkey import valkey_cluster, valkey_server

__all__ = ["StoreExtent", "main", "measure_stores"]

Int = NDArray[np.int64]

_ID_MAX = 1 << 40


@dataclass(frozen=True)
class StoreExtent:
    """Extent of the measurement."""

    rows: int = 200_000
    """Rows of the table."""
    width: int = 64
    """Values of a row."""
    batch: int = 60
    """Rows got at a time."""
    seed: int = 0
    """Seed of ids, rows and places."""
    rounds: int = 200
    """Turns of all stores."""
    calls: int = 10
    """Batches got in a turn."""
    warm_up: int = 20
    """Turns before, which do not count."""


def measure_stores(extent: StoreExtent = StoreExtent()) -> dict[str, Any]:
    """Median and 99th percentile in µs of getting a batch, for each store and for `take`, and medians by that of `take`.

    `memory`, `mmap`, `valkey`, `valkey_cluster` and `take` have `p50_us`, `p99_us` and `ratio_to_take`; `mmap` also
    `bytes_per_item`, all of its file's bytes. Raises `BenchmarkError` when a store brings other rows than were put.
    """
    rng = np.random.default_rng(extent.seed)
    ids = np.unique(rng.integers(-_ID_MAX, _ID_MAX, extent.rows))
    ids = ids[rng.permutation(len(ids))]
    vectors = rng.standard_normal((len(ids), extent.width)).astype(np.float16)
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="pocketrank-"))
        urls = {
            "memory": "memory:",
            "mmap": f"mmap:{folder}",
            "valkey": stack.enter_context(valkey_server()).url,
            "valkey_cluster": stack.enter_context(valkey_cluster()).url,
        }

        def places() -> Int:
            return rng.integers(0, len(ids), extent.batch)

        timed = {"take": Timed(lambda at: vectors.take(at, axis=0), lambda: (places(),))}
        for name, url in urls.items():
            store = open_store(url)
            stack.callback(store.close)
            store.create("bench", extent.width)
            store.put("bench", ids, vectors)
            got = store.get("bench", ids)
            if not got.found.all() or got.vectors.tobytes() != vectors.tobytes():
                raise BenchmarkError(name, "the rows that were put", "others")
            timed[name] = Timed(partial(store.get, "bench"), lambda: (ids[places()],))
        for number in range(extent.warm_up + extent.rounds):
            if number == extent.warm_up:
                for turn in timed.values():
                    turn.forget()
            for turn in timed.values():
                for _ in range(extent.calls):
                    turn.step()
        mapped = sum(path.stat().st_size for path in Path(folder).rglob("*.rows"))
    report: dict[str, Any] = {name: _figures(turn, timed["take"]) for name, turn in timed.items()}
    report["mmap"]["bytes_per_item"] = mapped / len(ids)
    done = {"repetitions": extent.rounds * extent.calls, "seed": extent.seed}
    return {**report, "rows": len(ids), "width": extent.width, "batch": extent.batch, **done}


def _figures(turn: Timed, take: Timed) -> dict[str, float]:
    figures = milliseconds(turn.ns)
    return {"p50_us": 1e3 * figures["p50_ms"], "p99_us": 1e3 * figures["p99_ms"], "ratio_to_take": turn.ms / take.ms}


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = command_parser("stores", "Time the rows of a page out of each embedding store, beside a plain array's `take`.")
    parser.add_argument("--rows", type=count, default=StoreExtent.rows, help="rows of the table (default: %(default)s)")
    parser.add_argument("--width", type=count, default=StoreExtent.width, help="values a row (default: %(default)s)")
    parser.add_argument("--batch", type=count, default=StoreExtent.batch, help="rows got at a time (default: %(default)s)")
    parser.add_argument("--rounds", type=count, default=StoreExtent.rounds, help="turns of all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=StoreExtent.seed, help="of ids, rows and places (default: %(default)s)")
    options = parser.parse_args(arguments)
    target = JsonTarget(options.json)
    report = measure_stores(from_options(StoreExtent, options))
    names = ("take", "memory", "mmap", "valkey", "valkey_cluster")
    shown = {"store": {name: report[name] for name in names}, **{k: v for k, v in report.items() if k not in names}}
    print_report(target.console, shown, rows="store", title=f"µs for {options.batch} rows of {options.width} values")
    target.write(report)


if __name__ == "__main__":
    sys.exit(main())
