"""The latest events of every user, which a training takes along from one window of the log to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LatestEvents", "PastEvents"]

Int = NDArray[np.int64]
Float = NDArray[np.float32]


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
    """Ring of the last `length` events of each user. Users without events take no memory, because it was never written to."""

    def __init__(self, users: int, length: int, *, feedback: int, history: int, tasks: int, statistics: int = 0) -> None:
        """`users` counts the unknown one; `feedback`, `history`, `tasks` and `statistics` are widths."""
        self.length = length
        self.count = np.zeros(users, np.int64)
        """[U + 1] number of events of each user so far"""
        self.until_ms = np.zeros(users, np.int64)
        """[U + 1] time of each user's last event; 0 where it is from before the log, or where there is none"""
        self._int = {name: np.zeros((users, length), np.int32) for name in ("item", "position", "day")}
        self._int |= {name: np.zeros((users, length), np.int64) for name in ("ms", "session")}
        widths = {"feedback": feedback, "history": history, "labels": tasks, "pxtr": tasks, "statistics": statistics}
        self._float = {name: np.zeros((users, length, width), np.float32) for name, width in widths.items()}

    def add(self, events: PastEvents) -> None:
        """Add the next events of users."""
        np.maximum.at(self.count, events.user, events.place + 1)
        np.maximum.at(self.until_ms, events.user, events.ms)
        kept = events.place >= self.count[events.user] - self.length
        at = events.user[kept], events.place[kept] % self.length
        for name, table in (self._int | self._float).items():
            table[at] = getattr(events, name)[kept]

    def take(self, users: Int) -> PastEvents:
        """Return the events that are kept of `users`, which are ascending."""
        held = np.minimum(self.count[users], self.length)
        user = np.repeat(users, held)
        first = np.repeat(self.count[users] - held - (np.cumsum(held) - held), held)
        place = first + np.arange(len(user))
        at = user, place % self.length
        columns: dict[str, Any] = {name: table[at].astype(np.int64) for name, table in self._int.items()}
        columns |= {name: table[at] for name, table in self._float.items()}
        return PastEvents(user=user, place=place, **columns)

    def history(self, length: int) -> tuple[NDArray[np.int32], Float, Int]:
        """Return the last `length` events of all users, oldest first and padded at the front: items [U + 1, h], feedback in the
        cloud [U + 1, h, G], and times [U + 1, h], 0 for events from before the log."""
        length = min(length, self.length)
        place = self.count[:, None] - length + np.arange(length)
        at = np.arange(len(self.count))[:, None], place % self.length
        known = place >= 0
        return self._int["item"][at] * known, self._float["history"][at] * known[..., None], self._int["ms"][at] * known
