"""The latest events of every user, which a training takes along from one window of the log to the next."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["LatestEvents", "PastEvents"]

Int = NDArray[np.int64]
Float = NDArray[np.float32]


_INTS = {"ms": np.int64, "session": np.int64, "item": np.int32, "position": np.int32, "day": np.int32}


@dataclass(frozen=True)
class PastEvents:
    """P events, sorted by user and time. The names are those of the events in `Samples`."""

    user: Int  # [P]
    item: Int  # [P]
    ms: Int  # [P]
    position: Int  # [P]
    place: Int  # [P] number of the user's events before it
    day: Int  # [P]
    session: Int  # [P]
    feedback: Float  # [P, F]
    history: Float  # [P, G]
    labels: Float  # [P, K]
    pxtr: Float  # [P, K]
    statistics: Float  # [P, S]


class LatestEvents:
    """Ring of the last `length` events of each user.

    The events of a user are side by side, and many of them are in a temporary file: only the pages of a window's users are in
    memory then.
    """

    IN_MEMORY: ClassVar[int] = 1 << 27
    """Bytes up to which they are in memory."""

    def __init__(self, users: int, length: int, *, feedback: int, history: int, tasks: int, statistics: int = 0) -> None:
        """`users` counts the unknown one; `feedback`, `history`, `tasks` and `statistics` are widths."""
        self.length = length
        self.count = np.zeros(users, np.int64)
        """[U + 1] number of events of each user so far"""
        self.until_ms = np.zeros(users, np.int64)
        """[U + 1] time of each user's last event; 0 where it is from before the log, or where there is none"""
        widths = {"feedback": feedback, "history": history, "labels": tasks, "pxtr": tasks, "statistics": statistics}
        kind = np.dtype([*_INTS.items(), *((name, np.float32, (width,)) for name, width in widths.items())], align=True)
        self._names = (*_INTS, *widths)
        self._map: mmap.mmap | None = None
        if (size := users * length * kind.itemsize) > self.IN_MEMORY:
            with TemporaryFile(prefix="pocketrank-") as file:
                file.truncate(size)
                self._map = mmap.mmap(file.fileno(), size)
        self._events = np.zeros((users, length), kind) if self._map is None else np.ndarray((users, length), kind, self._map)

    def add(self, events: PastEvents) -> None:
        """Add the next events of users."""
        (last,) = np.nonzero(np.diff(events.user, append=-1))
        self.count[events.user[last]] = events.place[last] + 1
        self.until_ms[events.user[last]] = events.ms[last]
        kept = events.place >= self.count[events.user] - self.length
        at = events.user[kept], events.place[kept] % self.length
        for name in self._names:
            self._events[name][at] = getattr(events, name)[kept]
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)  # the file keeps them

    def take(self, users: Int) -> PastEvents:
        """Return the events that are kept of `users`, which are ascending."""
        held = np.minimum(self.count[users], self.length)
        user = np.repeat(users, held)
        first = np.repeat(self.count[users] - held - (np.cumsum(held) - held), held)
        place = first + np.arange(len(user))
        at = user, place % self.length
        events = self._events[at]
        columns: dict[str, Any] = {
            name: np.ascontiguousarray(events[name], np.int64 if name in _INTS else None) for name in self._names
        }
        return PastEvents(user=user, place=place, **columns)

    def history(self, length: int) -> tuple[NDArray[np.int32], Float, Int]:
        """Return the last `length` events of all users, oldest first and padded at the front: items [U + 1, h], feedback in the
        cloud [U + 1, h, G], and times [U + 1, h], 0 for events from before the log."""
        length = min(length, self.length)
        place = self.count[:, None] - length + np.arange(length)
        at = np.arange(len(self.count))[:, None], place % self.length
        known = place >= 0
        ms = self._events["ms"][at] * known
        return self._events["item"][at] * known, self._events["history"][at] * known[..., None], ms
