"""Hidden state of a batch of sessions, and the part of it that does not depend on the items shown.

The intent is long-term taste, plus a topic in focus that sometimes jumps, plus a deviation that drifts as AR(1). Moods and
network quality drift as AR(1) as well. None of these depends on the items shown: with the same key they take the same path
under every policy. Satiation, satisfaction, the previous item and the clock depend on the items; `response` updates those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt64

from pocketrank.sdk_demo.world import luck
from pocketrank.sdk_demo.world.catalogue import Items
from pocketrank.sdk_demo.world.config import WorldConfig
from pocketrank.sdk_demo.world.users import MOODS, Users

__all__ = ["SessionPath", "State"]

_PATH = 1  # stream of random numbers; `response` uses another


@dataclass(slots=True)
class State:
    """A batch of running sessions, a row each. `step` is the number of impressions so far: the position of the next one."""

    key: UInt64[np.ndarray, " batch"]
    user: Int64[np.ndarray, " batch"]
    step: Int64[np.ndarray, " batch"]
    now_ms: Int64[np.ndarray, " batch"]
    start_ms: Int64[np.ndarray, " batch"]
    focus: Int64[np.ndarray, " batch"]
    drift: Float[np.ndarray, "batch d"]
    mood: Float[np.ndarray, "batch moods"]
    network: Float[np.ndarray, " batch"]
    wifi: Bool[np.ndarray, " batch"]
    saver: Bool[np.ndarray, " batch"]
    intent: Float[np.ndarray, "batch d"]
    feeling: Float[np.ndarray, "batch moods"]
    satiation: Float[np.ndarray, "batch topics"]
    satisfaction: Float[np.ndarray, " batch"]
    previous: Int64[np.ndarray, " batch"]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: Bool[np.ndarray, " all"] | Int64[np.ndarray, " taken"]) -> State:
        """Return a copy of the sessions that a mask or row numbers select."""
        return State(*(getattr(self, f.name)[rows] for f in fields(self)))


class SessionPath:
    """Starts sessions, and advances the part of their state that does not depend on the items shown."""

    def __init__(self, config: WorldConfig, items: Items, users: Users) -> None:
        self._config, self._items, self._users = config, items, users
        topics, d = items.centres.shape
        s = config.session
        mixed = (1.0 - s.stray_share) * users.interest + s.stray_share / topics
        self._focus_bounds = np.cumsum(mixed, axis=1)[:, :-1]
        self._taste = s.taste_weight * users.taste
        self._centres = s.focus_weight * items.centres
        self._d = d
        self._normals = d + len(MOODS) + 1
        self._normals += self._normals % 2
        self._keep = np.array([s.mood_memory] * len(MOODS) + [s.network_memory])
        self._fresh = np.sqrt(1.0 - self._keep**2)
        self._drift_fresh = math.sqrt((1.0 - s.drift_memory**2) / d)

    def start(
        self, keys: UInt64[np.ndarray, " batch"], users: Int64[np.ndarray, " batch"], start_ms: Int64[np.ndarray, " batch"]
    ) -> State:
        """Draw the first state of sessions from the stationary distribution. `users` are row numbers."""
        batch, n = len(keys), self._normals
        u = luck.uniforms(luck.step_keys(keys, _PATH, np.zeros(batch, dtype=np.int64)), n + 3)
        z = luck.normals(u[:, :n])
        d = self._d
        state = State(
            key=keys,
            user=users,
            step=np.zeros(batch, dtype=np.int64),
            now_ms=start_ms.copy(),
            start_ms=start_ms,
            focus=self._pick_focus(users, u[:, n + 1]),
            drift=z[:, :d] / np.sqrt(d),
            mood=z[:, d : d + len(MOODS)],
            network=z[:, d + len(MOODS)],
            wifi=u[:, n] < self._users.wifi[users],
            saver=u[:, n + 2] < self._config.signals.battery_saver_share,
            intent=np.zeros((batch, d)),
            feeling=np.zeros((batch, len(MOODS))),
            satiation=np.zeros((batch, self._items.centres.shape[0])),
            satisfaction=np.full(batch, self._config.exit.satisfaction_start),
            previous=np.full(batch, -1, dtype=np.int64),
        )
        self._derive(state)
        return state

    def advance(self, state: State) -> None:
        """Advance to the next step. The caller has already updated what depends on the item shown."""
        s = self._config.session
        n, d = self._normals, self._d
        state.step = state.step + 1
        u = luck.uniforms(luck.step_keys(state.key, _PATH, state.step), n + 4)
        z = luck.normals(u[:, :n])
        state.drift = s.drift_memory * state.drift + self._drift_fresh * z[:, :d]
        noise = self._fresh * z[:, d : d + len(MOODS) + 1]
        state.mood = self._keep[:-1] * state.mood + noise[:, :-1]
        state.network = self._keep[-1] * state.network + noise[:, -1]
        state.focus = np.where(u[:, n] < s.jump_rate, self._pick_focus(state.user, u[:, n + 1]), state.focus)
        state.wifi = np.where(u[:, n + 2] < s.network_switch, u[:, n + 3] < self._users.wifi[state.user], state.wifi)
        self._derive(state)

    def focus_prior(self, user: int) -> Float[np.ndarray, " topics"]:
        """Return the probability of each topic as the focus of a session of `user` (a row number)."""
        return np.diff(self._focus_bounds[user], prepend=0.0, append=1.0)

    def expected(self, user: int) -> tuple[Float[np.ndarray, "topics d"], Float[np.ndarray, "topics moods"]]:
        """Return intent and felt moods of `user` (a row number) for each focus, without drift and deviations of moods."""
        intent = self._taste[user] + self._centres
        return intent, np.repeat(self._users.mood_bias[[user]], len(intent), 0)

    def _pick_focus(self, users: Int64[np.ndarray, " batch"], u: Float[np.ndarray, " batch"]) -> Int64[np.ndarray, " batch"]:
        topic: Int64[np.ndarray, " batch"] = np.count_nonzero(self._focus_bounds[users] < u[:, None], axis=1)
        return topic

    def _derive(self, state: State) -> None:
        """Update intent and felt moods, which a step needs several times."""
        s = self._config.session
        state.intent = self._taste[state.user] + self._centres[state.focus] + s.drift_weight * state.drift
        state.feeling = state.mood + self._users.mood_bias[state.user]
        state.feeling[:, 2] += self._config.signals.battery_saver_impatience * state.saver
