"""What is measured, in a process of its own: `python -m benchmarks.data.subject NAME FOLDER`.

`FOLDER` is one of `benchmarks.data.synthetic`. Prints the figures as JSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.data.synthetic import CSV, DATA_FILE
from benchmarks.memory import peak_bytes

__all__ = ["SUBJECTS"]


def _import(folder: Path) -> Callable[[], int]:
    from pocketrank.cloud.data.import_log import import_log

    return lambda: import_log(folder / DATA_FILE, folder / "log").rows


def _train(folder: Path) -> Callable[[], int]:
    """One pass of the full ranker over the log that `import` wrote: each day is scored and then learned."""
    import torch

    from pocketrank.cloud.data.log import open_log
    from pocketrank.cloud.data.sample_stream import SampleStream
    from pocketrank.cloud.data.samples import SampleConfig
    from pocketrank.cloud.training.passes import Passes
    from pocketrank.cloud.training.ranker import RankerTraining, RankerTrainingConfig

    torch.set_num_threads(1)

    def train() -> int:
        log = open_log(folder / "log")
        stream = SampleStream(log, SampleConfig(tasks=tuple(log.tasks)))
        begin = partial(RankerTraining, config=RankerTrainingConfig(), learn_until=stream.facts.days, seed=0, rows=stream.rows)
        Passes(stream).train_ranker(begin, folder / "pxtr")
        return stream.rows

    return train


def _polars(folder: Path) -> Callable[[], int]:
    import polars

    return lambda: len(polars.read_csv(folder / CSV))


def _duckdb(folder: Path) -> Callable[[], int]:
    import duckdb

    def read() -> int:
        with duckdb.connect() as db:
            db.execute(f"CREATE TABLE log AS SELECT * FROM read_csv('{folder / CSV}')")
            return int(db.execute("SELECT count(*) FROM log").fetchall()[0][0])

    return read


def _duckdb_sorted(folder: Path) -> Callable[[], int]:
    """Read, sort and write Parquet: the part of an import that DuckDB can do alone, in one query."""
    import duckdb

    def sort() -> int:
        with duckdb.connect() as db:
            db.execute("SET preserve_insertion_order = false")  # twice as fast, and the query has an order of its own
            rows = f"SELECT * FROM read_csv('{folder / CSV}') ORDER BY shown_at, viewer, video"
            return int(db.execute(f"COPY ({rows}) TO '{folder / 'sorted.parquet'}' (FORMAT parquet)").fetchall()[0][0])

    return sort


SUBJECTS: dict[str, Callable[[Path], Callable[[], int]]] = {
    "polars": _polars,
    "duckdb": _duckdb,
    "duckdb_sorted": _duckdb_sorted,
    "import": _import,
    "train": _train,
}
"""Subjects by name. Each imports its libraries, and returns what is measured, which returns the number of rows found."""


def main(name: str, folder: str) -> None:
    """Run a subject once and print its figures."""
    subject = SUBJECTS[name](Path(folder))
    began, cpu = time.perf_counter(), time.process_time()
    rows = subject()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    peak = peak_bytes() / 2**20
    print(msgspec.json.encode({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak, "found": rows}).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
