"""Metrics of several worker processes as one: each writes to files in a folder, and whoever is scraped adds them all up.

prometheus_client's own way of doing it, but for one thing: the files belong to the place of a worker and not to its process
id. The process that is started where another was killed goes on counting from there, so that no counter ever falls and the
folder does not grow. The folder belongs to one life of the server; put it in memory where the temporary folder is on a disk.

The supervisor and its workers hold the folder by a lock, which ends with them however they end. So one that a killed supervisor
left is known for certain, also where containers share a temporary folder and process ids say nothing; the next one that starts
removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from prometheus_client import CollectorRegistry, disable_created_metrics, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

__all__ = ["PLACE", "SharedMetrics", "all_workers", "prepare_metrics", "shared_metrics"]

PLACE = "POCKETRANK_WORKER"
"""Environment variable: the place of a worker among the others, from 0."""

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own name
_PREFIX, _SUFFIX = "pocketrank-", ".metrics"


class SharedMetrics:
    """The supervisor's side of the files in `folder`; made by `shared_metrics`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def environment(self, place: int) -> Mapping[str, str]:
        """What the worker at a place needs in its environment before it imports anything."""
        return {_FOLDER: self._folder, PLACE: str(place)}

    def died(self, place: int) -> None:
        """Forget the gauges of a worker that is gone. Its counters stay."""
        mark_process_dead(place, self._folder)  # type: ignore[no-untyped-call]


@contextmanager
def shared_metrics() -> Iterator[SharedMetrics]:
    """A folder for the workers' files, gone after the block; those that killed supervisors left go before it."""
    _remove_left()
    folder, held = _make()
    try:
        yield SharedMetrics(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _make() -> tuple[str, int]:
    """A new folder and the descriptor that holds it."""
    while True:
        folder = mkdtemp(_SUFFIX, _PREFIX)
        with suppress(FileNotFoundError):
            held = _hold(folder)
            if os.path.isdir(folder):
                return folder, held
            os.close(held)  # another supervisor removed it in the moment before


def _hold(folder: str) -> int:
    """Keep `folder` from being taken for one that was left, until the descriptor is closed or the process ends."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):  # where there are no locks, nobody removes anything
        fcntl.flock(held, fcntl.LOCK_SH)
    return held


def _remove_left() -> None:
    for folder in Path(gettempdir()).glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # it is held, or somebody else's, or gone by now
            found = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(found)


def prepare_metrics() -> None:
    """Before a process makes its first metric: have it write where the supervisor says, if there is one."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of all series, and there are none of them in files
    place = os.environ.get(PLACE)
    if place is not None and not getattr(values.ValueClass, "of_place", False):
        _hold(os.environ[_FOLDER])  # as long as this process lives, which may be longer than its supervisor does
        values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]
        values.ValueClass.of_place = True


def all_workers() -> CollectorRegistry | None:
    """A registry of what all workers have written until now; None in a process that is alone."""
    if PLACE not in os.environ:
        return None
    registry = CollectorRegistry()
    MultiProcessCollector(registry, os.environ[_FOLDER])  # type: ignore[no-untyped-call]
    return registry
