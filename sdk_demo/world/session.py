"""A live session of one user, impression by impression, and its true probabilities for the oracle."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from jaxtyping import Float, Int

from pocketrank.device.contract import Ended, FeedbackEvent, Network, Orientation
from pocketrank.sdk_demo.world.belief import FocusBelief
from pocketrank.sdk_demo.world.config import WorldConfig
from pocketrank.sdk_demo.world.errors import SessionOverError, UnknownIdError
from pocketrank.sdk_demo.world.response import ResponseModel
from pocketrank.sdk_demo.world.state import State

__all__ = ["SESSION_TAG", "Outcome", "UserSession"]

SESSION_TAG = 2
"""Part of the random keys of live sessions; those of a log have another (`simulate.LOG_TAG`)."""

_ENUMS: dict[str, type[IntEnum]] = {"ended": Ended, "orientation": Orientation, "network": Network}


@dataclass(slots=True, frozen=True, kw_only=True)
class Outcome:
    """Outcome of one impression. Names and units are those of `pocketrank.device.contract.FeedbackEvent`.

    `effective_view`, `long_view` and `has_next` are the labels; a device does not report them.
    """

    user_id: int
    item_id: int
    position: int
    impression_ms: int
    watch_ms: int
    ended: Ended
    effective_view: bool
    long_view: bool
    like: bool
    follow: bool
    dislike: bool
    has_next: bool
    volume: float
    volume_change: float
    muted: bool
    orientation: Orientation
    playback_rate: float
    pauses: int
    seeks: int
    scroll_speed: float
    network: Network
    buffering_ms: int
    battery_saver: bool
    backgrounded: bool

    def event(self, *, event_id: str, session_id: str, page_id: str | None = None) -> FeedbackEvent:
        """Return the feedback event that a device reports for this impression."""
        values = {
            name: getattr(self, name) for name in self.__slots__ if name not in ("effective_view", "long_view", "has_next")
        }
        return FeedbackEvent(event_id=event_id, session_id=session_id, page_id=page_id, **values)


class UserSession:
    """Live session of one user, made by `World.session`.

    The hidden path of the session depends on world, user and seed only, and the random numbers of an outcome on session,
    position and item only, so that two policies with the same session are compared on equal luck.
    """

    def __init__(self, config: WorldConfig, model: ResponseModel, state: State, item_count: int) -> None:
        self._config, self._model, self._state, self._item_count = config, model, state, item_count
        self._alive = True
        self._belief: FocusBelief | None = None

    @property
    def user_id(self) -> int:
        """Id of the session's user."""
        return int(self._state.user[0]) + 1

    @property
    def alive(self) -> bool:
        """Whether the user has not left yet."""
        return self._alive

    @property
    def position(self) -> int:
        """Position of the next impression, from 0."""
        return int(self._state.step[0])

    @property
    def now_ms(self) -> int:
        """The session's clock: start of the next impression, ms since the epoch."""
        return int(self._state.now_ms[0])

    def probabilities(self, item_ids: Int[np.ndarray, " n"]) -> dict[str, Float[np.ndarray, " n"]]:
        """Return the true probability of each of `pocketrank.sdk_demo.world.TASKS` if each item were shown now.

        The noise of watch time, actions and leaving is integrated out in closed form; nothing is drawn, and the state does not
        change. Raises `UnknownIdError`.
        """
        table = self._model.probabilities(self._state, self._rows(item_ids)[None, :])
        return {task: values[0] for task, values in table.items()}

    def expected(self, item_ids: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return the probability of an effective view if each item were shown now, without knowing the hidden state (`belief`).

        Items watched before the first call are not used. Raises `UnknownIdError`.
        """
        rows = self._rows(item_ids)
        if self._belief is None:
            self._belief = FocusBelief(self._config, self._model, int(self._state.user[0]))
        likely: Float[np.ndarray, " n"] = self._belief.focus @ self._belief.rates(self._state, rows)
        return likely

    def _rows(self, item_ids: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        ids = np.asarray(item_ids, dtype=np.int64)
        if ids.size and not (ids.min() >= 1 and ids.max() <= self._item_count):
            bad = ids[(ids < 1) | (ids > self._item_count)][0]
            raise UnknownIdError("item_ids", f"ids in 1..{self._item_count}", str(bad))
        return ids - 1

    def watch(self, item_id: int) -> Outcome:
        """Show an item and advance to the next step. Raises `SessionOverError` once the user has left, `UnknownIdError`."""
        if not self._alive:
            raise SessionOverError("watch", "a session that is alive", f"one that ended before position {self.position}")
        if not 1 <= item_id <= self._item_count:
            raise UnknownIdError("item_id", f"an id in 1..{self._item_count}", str(item_id))
        row = np.array([item_id - 1])
        rates = None if self._belief is None else self._belief.rates(self._state, row)[:, 0]
        o = self._model.watch(self._state, row)
        if self._belief is not None and rates is not None:
            self._belief.learn(rates, bool(o.effective_view[0]))
        self._alive = bool(o.has_next[0])
        # The arrays of a batch of one hold one value for each field of the outcome.
        values = {f.name: getattr(part, f.name) for part in (o, o.signals) for f in fields(part)}
        one = {name: values[name].item() for name in Outcome.__slots__ if name in values}
        one |= {name: kind(one[name]) for name, kind in _ENUMS.items()}
        return Outcome(user_id=self.user_id, item_id=int(item_id), **one)
