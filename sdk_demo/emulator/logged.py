"""Users of a log in the place of simulated ones: what a user does with an item is what the log has of an impression of it.

So a server of a team's own log is tried with its users and items. Responses are drawn at random from the log's impressions of
the item, whoever saw it: they follow the item alone, and neither the user nor the session. The figures of such sessions say
that everything works, and nothing about gains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pocketrank.cloud.data.log import Log
from pocketrank.cloud.data.schema import LABELS
from pocketrank.device.contract import EFFECTIVE_VIEW_MS, WATCH_MS_MAX, FeedbackEvent

__all__ = ["LoggedOutcome", "LoggedUser", "LoggedUsers"]

_HOUR_MS = 3_600_000
_PAUSE_MS = 1000
"""From the end of an impression to the next one."""
_EVENT_LABELS = tuple(name for name in LABELS if name in FeedbackEvent.__struct_fields__)
SESSION_ITEMS = 20
"""Mean length of a session where the log has none."""


@dataclass(frozen=True)
class LoggedOutcome:
    """Outcome of one impression, with the names of `pocketrank.sdk_demo.world.session.Outcome`."""

    user_id: int
    item_id: int
    position: int
    impression_ms: int
    watch_ms: int
    effective_view: bool
    taken: dict[str, Any]
    """Labels that are fields of an event."""
    actions: tuple[str, ...]

    @property
    def like(self) -> bool:
        """Whether the user liked it."""
        return bool(self.taken.get("like", False))

    @property
    def follow(self) -> bool:
        """Whether the user followed the author."""
        return bool(self.taken.get("follow", False))

    def event(self, *, event_id: str, session_id: str, page_id: str | None = None) -> FeedbackEvent:
        """Return the feedback event that a device reports for this impression."""
        return FeedbackEvent(
            event_id=event_id,
            session_id=session_id,
            page_id=page_id,
            user_id=self.user_id,
            item_id=self.item_id,
            position=self.position,
            impression_ms=self.impression_ms,
            watch_ms=self.watch_ms,
            actions=self.actions,
            **self.taken,
        )


class LoggedUsers:
    """The users of a log, who come back after its end."""

    def __init__(self, log: Log) -> None:
        names = ["user_id", "item_id", "impression_ms", "watch_ms", "session_id", "effective_view"]
        names = list(dict.fromkeys((*names, *_EVENT_LABELS, *log.actions, *log.tasks)))
        table = pa.concat_tables([part.select(names) for part in log.parts()])
        self.actions = log.actions
        self.users = np.unique(table["user_id"].to_numpy())
        """[U] codes of the users"""
        self._columns: dict[str, Any] = {name: table[name].to_numpy(zero_copy_only=False) for name in names}
        self._rows = np.argsort(self._columns["item_id"], kind="stable")
        self._items = self._columns["item_id"][self._rows]
        self._duration = dict(zip(log.items["item_id"].to_pylist(), log.items["duration_ms"].to_pylist(), strict=True))
        self._first_task = next(iter(log.tasks))
        self.until_ms = int(self._columns["impression_ms"].max())
        sessions = table["session_id"].drop_null()
        self._length = len(sessions) / max(1, len(sessions.unique())) if len(sessions) else float(SESSION_ITEMS)

    def session(self, user_id: int, *, seed: int, start_ms: int | None = None) -> LoggedUser:
        """Return a session of a user, given by its number from 1."""
        user = int(self.users[user_id - 1])
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, user_id])))
        return LoggedUser(self, user, rng, self.until_ms + _HOUR_MS if start_ms is None else start_ms, self._length)

    def outcome(self, item: int, rng: np.random.Generator) -> tuple[int, bool, dict[str, Any], tuple[str, ...]]:
        """Return watch time, effective view, labels and actions of a logged impression of an item; none of them without one."""
        first, end = np.searchsorted(self._items, [item, item + 1])
        if first == end:
            return 0, False, {}, ()
        row, columns = self._rows[rng.integers(first, end)], self._columns
        watch_ms = min(int(columns["watch_ms"][row]), WATCH_MS_MAX)
        effective = columns["effective_view"][row]
        if effective is None:
            least = min(self._duration.get(item) or EFFECTIVE_VIEW_MS, EFFECTIVE_VIEW_MS)
            effective = watch_ms >= least or _true(columns[self._first_task][row])
        taken = {name: True for name in _EVENT_LABELS if _true(columns[name][row])}
        return watch_ms, bool(effective), taken, tuple(name for name in self.actions if _true(columns[name][row]))


class LoggedUser:
    """Session of one user, with what a phone asks of `pocketrank.sdk_demo.world.UserSession`."""

    def __init__(self, users: LoggedUsers, user_id: int, rng: np.random.Generator, now_ms: int, length: float) -> None:
        self._users, self._rng = users, rng
        self.user_id, self.now_ms, self.position = user_id, now_ms, 0
        self._leaves_after = 1 + int(rng.poisson(max(0.0, length - 1)))

    @property
    def alive(self) -> bool:
        """Whether the user has not left yet."""
        return self.position < self._leaves_after

    def watch(self, item: int) -> LoggedOutcome:
        """Show an item and return what the user did."""
        watch_ms, effective, taken, actions = self._users.outcome(item, self._rng)
        outcome = LoggedOutcome(self.user_id, item, self.position, self.now_ms, watch_ms, effective, taken, actions)
        self.now_ms += watch_ms + _PAUSE_MS
        self.position += 1
        return outcome


def _true(value: Any) -> bool:
    """Return whether a label is positive; it is None where it is unknown."""
    return value is not None and bool(value)
