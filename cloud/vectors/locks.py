"""Many readers or one writer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock

__all__ = ["ReadWriteLock"]


class ReadWriteLock:
    """Lets many read at once, or one write. A waiting writer goes before readers that come after it. Not re-entrant."""

    def __init__(self) -> None:
        self._gate = Lock()  # held by the writer from when it waits; readers only pass through
        self._counting = Lock()
        self._left, self._readers = Condition(self._counting), 0
        self._reading = _Reading(self)

    @property
    def writer_waits(self) -> bool:
        """Whether somebody writes or waits to."""
        return self._gate.locked()

    def read(self) -> _Reading:
        """Nothing is written while the block runs."""
        return self._reading

    def enter(self) -> None:
        """What `read` begins with."""
        with self._gate, self._counting:
            self._readers += 1

    def leave(self) -> None:
        """What it ends with."""
        with self._counting:
            self._readers -= 1
            if not self._readers and self._gate.locked():  # whoever waits holds the gate
                self._left.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Nobody reads and nobody else writes while the block runs."""
        with self._gate:
            with self._left:
                while self._readers:
                    self._left.wait()
            yield


class _Reading:
    """The block of a reader; a generator would take longer than many a search."""

    def __init__(self, lock: ReadWriteLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.enter()

    def __exit__(self, *error: object) -> None:
        self._lock.leave()
