"""Metrics of several worker processes: each writes to files in one folder, and the worker that is scraped adds them all up.

This is prometheus_client's multiprocess mode with one difference: a file is named after the place of a worker, not after its
process id. A worker that replaces a killed one continues its files. With process ids each restart would add two files of 64 kB
or more that are read at every scrape for as long as the server runs. The folder belongs to one run of the server. Put it in
memory where the temporary folder is on a disk.

The supervisor and its workers hold a lock on the folder, which ends with them however they end. So the next supervisor can
recognise a folder that a killed one left behind, and removes it, even where containers share a temporary folder and process ids
are ambiguous.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

__all__ = ["PLACE", "SharedCounts", "SharedMetrics", "add_counts", "all_workers", "prepare_metrics", "shared_metrics"]

PLACE = "POCKETRANK_WORKER"
"""Environment variable with the place of a worker among the others, from 0."""

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own name
_PREFIX, _SUFFIX = "pocketrank-", ".metrics"
_COUNTS = ".counts"


class SharedMetrics(NamedTuple):
    """The supervisor's view of the files in `folder`, which `shared_metrics` creates."""

    folder: str

    def environment(self, place: int) -> Mapping[str, str]:
        """Return the environment variables that the worker at a place needs before it makes a metric."""
        return {_FOLDER: self.folder, PLACE: str(place)}

    def died(self, place: int) -> None:
        """Remove the gauges and the `SharedCounts` of a worker that ended. Its counters stay."""
        mark_process_dead(place, self.folder)  # type: ignore[no-untyped-call]
        for file in Path(self.folder).glob(f"*_{place}{_COUNTS}"):
            file.unlink(missing_ok=True)


@contextmanager
def shared_metrics() -> Iterator[SharedMetrics]:
    """Create a folder for the workers' files, and remove it after the block. First removes those of killed supervisors."""
    _remove_abandoned()
    folder, held = _make()
    try:
        yield SharedMetrics(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _make() -> tuple[str, int]:
    """Return a new folder and the descriptor that locks it."""
    while True:
        folder = mkdtemp(_SUFFIX, _PREFIX)
        with suppress(FileNotFoundError):
            held = _lock(folder)
            if os.path.isdir(folder):
                return folder, held
            os.close(held)  # another supervisor removed it in the moment before


def _lock(folder: str) -> int:
    """Mark `folder` as used until the returned descriptor is closed or the process ends."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):  # on a file system without locks, nobody removes anything
        fcntl.flock(held, fcntl.LOCK_SH)
    return held


def _remove_abandoned() -> None:
    for folder in Path(gettempdir()).glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # it is in use, another user's, or already removed
            found = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(found)


def prepare_metrics() -> None:
    """Have the metrics of a worker process written to the supervisor's folder. Call it before the first metric is made."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of all series, which files do not hold anyway
    place = os.environ.get(PLACE)
    if place is not None and not getattr(values.ValueClass, "of_place", False):
        _lock(os.environ[_FOLDER])  # as long as this process lives: it may outlive its supervisor
        values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]
        values.ValueClass.of_place = True


def all_workers() -> CollectorRegistry | None:
    """Return a registry of what all workers have written, or None in a process without a supervisor."""
    if PLACE not in os.environ:
        return None
    registry = CollectorRegistry()
    MultiProcessCollector(registry, os.environ[_FOLDER])  # type: ignore[no-untyped-call]
    return registry


class SharedCounts:
    """Counts under a name that each worker keeps for itself, and their total. Without a supervisor there is one worker.

    Counts are for a `key`, which says what they count: workers that go over to other counts do so one after the other.
    """

    KEY_BYTES = 16

    def __init__(self, name: str) -> None:
        self._folder, self._file = None, None
        if (place := os.environ.get(PLACE)) is not None:
            self._folder, self._files = Path(os.environ[_FOLDER]), f"{name}_*{_COUNTS}"
            self._file = os.open(self._folder / f"{name}_{place}{_COUNTS}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._written = b""

    def write(self, key: bytes, counts: NDArray[np.int64]) -> None:
        """Replace the counts [n] of this worker."""
        data = key + counts.tobytes()
        if data != self._written and self._file is not None:
            os.pwrite(self._file, data, 0)
            os.ftruncate(self._file, len(data))
        self._written = data

    def total(self, key: bytes) -> NDArray[np.int64]:
        """Return the sum of the counts [n] of all workers that have written counts of this key, as this one has."""
        written = [self._written]
        if self._folder is not None:
            written = [data for file in self._folder.glob(self._files) if (data := file.read_bytes()).startswith(key)]
        size = len(self._written)
        counts = [np.frombuffer(data, np.int64, offset=len(key)) for data in written if len(data) == size]
        return np.asarray(np.sum(counts, axis=0))


def add_counts(histogram: Histogram, counts: Sequence[int], total: float) -> None:
    """Add observations that are already counted by bucket and have the sum `total`. Empty buckets at the end may be missing.

    prometheus_client has no public method that adds several observations at once. Its version is pinned, and a test would
    notice a change.
    """
    for bucket, count in zip(histogram._buckets, counts, strict=False):
        if count:
            bucket.inc(count)
    histogram._sum.inc(total)
