"""Metrics of several worker processes as one: each writes to files in a folder, and whoever is scraped adds them all up.

prometheus_client's own way of doing it, but for one thing: the files belong to the place of a worker and not to its process
id. The process that is started where another was killed goes on counting from there, so that no counter ever falls and the
folder does not grow. The folder belongs to one life of the server; put it in memory where the temporary folder is on a disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from prometheus_client import CollectorRegistry, disable_created_metrics, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

__all__ = ["PLACE", "SharedMetrics", "all_workers", "prepare_metrics", "shared_metrics"]

PLACE = "POCKETRANK_WORKER"
"""Environment variable: the place of a worker among the others, from 0."""

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own name


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
    """A folder for the workers' files, gone after the block."""
    with TemporaryDirectory(prefix="pocketrank-metrics-") as folder:
        yield SharedMetrics(folder)


def prepare_metrics() -> None:
    """Before a process makes its first metric: have it write where the supervisor says, if there is one."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of all series, and there are none of them in files
    place = os.environ.get(PLACE)
    if place is not None and not getattr(values.ValueClass, "of_place", False):
        values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]
        values.ValueClass.of_place = True


def all_workers() -> CollectorRegistry | None:
    """A registry of what all workers have written until now; None in a process that is alone."""
    if PLACE not in os.environ:
        return None
    registry = CollectorRegistry()
    MultiProcessCollector(registry, os.environ[_FOLDER])  # type: ignore[no-untyped-call]
    return registry
