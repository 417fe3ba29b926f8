"""The response of users to items: true probabilities, and outcomes drawn from exactly those.

The location of ln watch time = intercept + utility + terms of duration, impatience and buffering. Its noise is logistic, so
that P(watch ≥ t) is one sigmoid. Given the view, actions are Bernoulli with a probability that depends on the utility. The
hazard of leaving depends on the view only through its class (not effective, effective, long), so that P(has_next) is a sum of
three terms. The device's readings of buffering and volume are noisy versions of what is used here (`signals`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from pocketrank.device.contract import Ended
from pocketrank.sdk_demo.world import luck
from pocketrank.sdk_demo.world.catalogue import Items
from pocketrank.sdk_demo.world.config import WorldConfig
from pocketrank.sdk_demo.world.signals import SIGNAL_UNIFORMS, DeviceSignals, Signals, Viewing
from pocketrank.sdk_demo.world.state import SessionPath, State
from pocketrank.sdk_demo.world.users import MOODS, Users

__all__ = ["TASKS", "Outcomes", "Response", "ResponseModel", "sigmoid"]

TASKS = ("effective_view", "long_view", "like", "follow", "has_next")
"""Tasks of `ResponseModel.probabilities`, in its order."""

_OUTCOME = 2  # stream of random numbers; `state` uses another
_SOUND, _PATIENCE, _IMPATIENCE = (MOODS.index(m) for m in ("sound", "patience", "impatience"))
_QUALITY, _DURATION, _MUSIC, _EFFECTIVE, _LONG = range(5)  # columns of the packed item matrix


@dataclass(slots=True, frozen=True)
class Response:
    """Response to n items now: utility, location of ln watch seconds, and expected buffering in seconds."""

    utility: Float[np.ndarray, "batch n"]
    location: Float[np.ndarray, "batch n"]
    buffering_s: Float[np.ndarray, "batch n"]


@dataclass(slots=True, frozen=True)
class Outcomes:
    """One finished impression of each session of a batch. Where `has_next` is false, the user has left."""

    user: Int64[np.ndarray, " batch"]
    item: Int64[np.ndarray, " batch"]
    position: Int64[np.ndarray, " batch"]
    impression_ms: Int64[np.ndarray, " batch"]
    watch_ms: Int64[np.ndarray, " batch"]
    ended: Int64[np.ndarray, " batch"]
    effective_view: Bool[np.ndarray, " batch"]
    long_view: Bool[np.ndarray, " batch"]
    like: Bool[np.ndarray, " batch"]
    follow: Bool[np.ndarray, " batch"]
    dislike: Bool[np.ndarray, " batch"]
    has_next: Bool[np.ndarray, " batch"]
    signals: Signals


def sigmoid(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return 1 / (1 + e^-x) without overflow."""
    half: Float[np.ndarray, "*shape"] = np.tanh(0.5 * x)
    half += 1.0
    half *= 0.5
    return half


class ResponseModel:
    """Response of a batch of sessions, and the changes of their state that depend on the items shown."""

    def __init__(self, config: WorldConfig, items: Items, users: Users) -> None:
        self._config = config
        self.path = SessionPath(config, items, users)
        self._device = DeviceSignals(config.signals)
        self._topic = items.category.astype(np.int64) - 1
        self._author = items.author_id
        self._vector = items.vector.astype(np.float64)
        self._duration_ms = items.duration_ms
        log_s = np.log(items.duration_ms / 1000.0)
        music = (self._topic < config.catalogue.music_topics).astype(np.float64)
        watch = config.watch
        self._packed = np.stack(
            [
                items.quality,
                (log_s - log_s.mean()) / (log_s.std() + 1e-9),
                music - music.mean(),  # centred: sound adds to music topics what it takes from the others
                np.minimum(log_s, np.log(watch.effective_s)),
                np.minimum(log_s, np.log(watch.long_s)),
            ],
            axis=1,
        )
        a, e = config.actions, config.exit
        self._action_intercept = np.array([a.like_intercept, a.follow_intercept])
        self._action_slope = np.array([a.like_slope, a.follow_slope])
        self._reward = e.satisfaction_rate * np.array([0.0, e.effective_reward, e.long_reward])

    def respond(self, state: State, items: Int64[np.ndarray, "batch n"]) -> Response:
        """Return the response of the users to `items` (row numbers) now."""
        u, w = self._config.utility, self._config.watch
        packed = self._packed[items]
        vectors = self._vector[items]
        duration, music = packed[..., _DURATION], packed[..., _MUSIC]
        seen = (state.previous >= 0)[:, None]
        sound, patience, impatience = (state.feeling[:, k, None] for k in (_SOUND, _PATIENCE, _IMPATIENCE))
        # Utility is linear in the item vector, so that attraction and repulsion are summed before one product.
        pull = u.match * state.intent - u.similarity * seen * self._vector[state.previous]
        utility = (vectors @ pull[:, :, None])[..., 0]
        utility += u.quality * packed[..., _QUALITY]
        utility -= u.satiation * state.satiation[np.arange(len(state))[:, None], self._topic[items]]
        utility -= u.same_author * (seen & (self._author[items] == self._author[state.previous][:, None]))
        utility += (u.sound * sound) * music + (u.patience * patience) * duration
        buffering = self._device.expected_buffering(state, duration)
        location = utility + (w.duration - w.impatience_duration * impatience) * duration - w.buffering * buffering
        location += w.intercept - w.impatience * impatience
        return Response(utility, location, buffering)

    def probabilities(self, state: State, items: Int64[np.ndarray, "batch n"]) -> dict[str, Float[np.ndarray, "batch n"]]:
        """Return the true probability of each of `TASKS` if each item were shown now."""
        response = self.respond(state, items)
        thresholds = self._packed[items][..., _EFFECTIVE : _LONG + 1]
        view = sigmoid((response.location[..., None] - thresholds) / self._config.watch.scale)
        action = view * sigmoid(self._action_intercept + self._action_slope * response.utility[..., None])
        effective, long = view[..., 0], view[..., 1]
        leave = self._leave(state, response)
        missed = leave[..., 0] * (1.0 - effective) + leave[..., 1] * (effective - long) + leave[..., 2] * long
        return {
            "effective_view": effective,
            "long_view": long,
            "like": action[..., 0],
            "follow": action[..., 1],
            "has_next": 1 - missed,
        }

    def watch(self, state: State, items: Int64[np.ndarray, " batch"]) -> Outcomes:
        """Show one item to each session, advance every session by one step, and return the outcomes.

        Sessions whose `has_next` is false stay in the batch; the caller removes them.
        """
        config, batch = self._config, len(state)
        rows = np.arange(batch)
        response = self.respond(state, items[:, None])
        utility = response.utility[:, 0]
        noise = luck.uniforms(luck.step_keys(state.key, _OUTCOME, state.step, items), 6 + SIGNAL_UNIFORMS)

        # Watch time: logistic noise around the location, capped at the duration.
        duration_ms = self._duration_ms[items]
        u = noise[:, 0]
        log_s = np.minimum(response.location[:, 0] + config.watch.scale * np.log(u / (1.0 - u)), 20.0)
        watch_ms = np.minimum((np.exp(log_s) * 1000.0).astype(np.int64), duration_ms)
        effective = watch_ms >= np.minimum(duration_ms, round(config.watch.effective_s * 1000))
        long = watch_ms >= np.minimum(duration_ms, round(config.watch.long_s * 1000))

        # Actions, given the view.
        a = config.actions
        action = sigmoid(self._action_intercept + self._action_slope * utility[:, None])
        like = effective & (noise[:, 1] < action[:, 0])
        follow = long & (noise[:, 2] < action[:, 1])
        dislike = ~effective & (noise[:, 3] < sigmoid(a.dislike_intercept + a.dislike_slope * utility))

        # Leaving, and how the impression ended.
        kind = effective.astype(np.int64) + long
        leave = self._leave(state, response)[:, 0]
        has_next = noise[:, 4] >= leave[rows, kind]
        background = ~has_next & (noise[:, 5] < config.exit.background_share)
        ended = np.where(
            background,
            int(Ended.BACKGROUND),
            np.where(has_next, np.where(watch_ms >= duration_ms, int(Ended.COMPLETE), int(Ended.SWIPE)), int(Ended.EXIT)),
        )
        # The device's readings, then the state of the next step.
        duration, music = self._packed[items, _DURATION], self._packed[items, _MUSIC]
        shown = Viewing(utility, watch_ms, response.buffering_s[:, 0], duration, music, background)
        signals = self._device.read(state, shown, noise[:, 6:])
        outcomes = Outcomes(
            state.user,
            items,
            state.step,
            state.now_ms,
            watch_ms,
            ended,
            effective,
            long,
            like,
            follow,
            dislike,
            has_next,
            signals,
        )
        self._settle(state, outcomes, kind)
        return outcomes

    def _leave(self, state: State, response: Response) -> Float[np.ndarray, "batch n 3"]:
        """Return the probability of leaving after a view that is not effective, effective only, or long."""
        e = self._config.exit
        after = (1.0 - e.satisfaction_rate) * state.satisfaction[:, None] + self._reward
        minutes = (state.now_ms - state.start_ms) / 600_000.0
        # At the last allowed position the hazard makes leaving certain in double precision.
        last = state.step + 1 >= self._config.session.max_impressions
        base = e.intercept + 1e4 * last + e.impatience * state.feeling[:, _IMPATIENCE]
        base += e.fatigue_count / 10.0 * state.step + e.fatigue_minutes * minutes
        moment = base[:, None] - e.satisfaction * after
        return sigmoid(moment[:, None, :] + e.buffering * response.buffering_s[..., None])

    def _settle(self, state: State, o: Outcomes, kind: Int64[np.ndarray, " batch"]) -> None:
        """Update the state that depends on the item shown, then the rest."""
        config = self._config
        s = config.session
        rows = np.arange(len(state))
        # Satiation counts an item by its watch time as a share of a long view: a flick adds little.
        share = np.minimum(o.watch_ms / np.minimum(self._duration_ms[o.item], config.watch.long_s * 1000.0), 1.0)
        state.satiation = s.satiation_memory * state.satiation
        state.satiation[rows, self._topic[o.item]] += s.satiation_gain * (s.satiation_floor + (1.0 - s.satiation_floor) * share)
        state.satisfaction = (1.0 - config.exit.satisfaction_rate) * state.satisfaction + self._reward[kind]
        state.previous = o.item
        gap = (s.gap_ms / np.minimum(np.maximum(o.signals.scroll_speed, 0.25), 4.0)).astype(np.int64)
        state.now_ms = state.now_ms + o.watch_ms + o.signals.buffering_ms + gap
        self.path.advance(state)
