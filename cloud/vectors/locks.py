"""A lock for many readers or one writer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock

__all__ = ["ReadWriteLock"]


class ReadWriteLock:
    """Lock that lets many threads read at once, or one write. A waiting writer goes before later readers. Not re-entrant."""

    def __init__(self) -> None:
        self._gate = Lock()  # a writer holds it while it waits and writes; readers only pass through
        self._counting = Lock()
        self._no_readers, self._readers = Condition(self._counting), 0
        self._reading = _Reading(self)

    def read(self) -> _Reading:
        """Return a context manager: nothing is written while its block runs."""
        return self._reading

    def enter(self) -> None:
        """Begin to read."""
        with self._gate, self._counting:
            self._readers += 1

    def leave(self) -> None:
        """End reading."""
        with self._counting:
            self._readers -= 1
            if not self._readers and self._gate.locked():  # a writer that waits holds the gate
                self._no_readers.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Nobody reads and nobody else writes while the block runs."""
        with self._gate:
            with self._no_readers:
                while self._readers:
                    self._no_readers.wait()
            yield


class _Reading:
    """Block of a reader. It is a class because a generator would take longer than many a search."""

    def __init__(self, lock: ReadWriteLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.enter()

    def __exit__(self, *error: object) -> None:
        self._lock.leave()
