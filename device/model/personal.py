"""A user's own last layer, which adapts the shipped model to the user's feedback. It is learned and kept on the device.

To the shipped model's log-odds of task k, the layer adds a weight of the user and a weight of the item's category ::

    odds'_k = odds_k exp(u_k + c_k[category])                 odds = p / (1 - p)

The shipped model is the prior: all weights are Gaussian around 0, with the variance by which users differ. An impression is one
step of the extended Kalman filter for logistic regression (Fahrmeir 1992), whose covariance is kept diagonal by matching
moments, as in AdPredictor (Graepel et al. 2010). Each step also forgets a share of what was learned, so that a mood passes:
without feedback the mean m and the variance v return to those of the prior, 0 and v0. For the weights that an impression
touches ::

    m  <-  a m                 v  <-  a² v + (1 - a²) v0      a = exp(-forget), for all weights of a task with a label
    m  <-  m + g (y - p')      v  <-  v - g q v               g = v / (1 + q sum(v)),  q = p' (1 - p')
    m  <-  m drift_max / |m|   where |m| > drift_max          |m|² = sum(m² / v0), over all weights of a task

Tasks are independent of one another. Weights on another task's log-odds, a slope on the task's own and weights by duration were
tried and gained nothing (`benchmarks.personal`).

Errors::

    PersonalError              a saved state cannot be used. A new layer, which is the shipped model, can replace it
    ├── CorruptStateError      bytes that are cut or changed, or numbers that no learning can produce
    └── ForeignStateError      the state of another version, bundle, user or config
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import (
    EFFECTIVE_VIEW_MS,
    LONG_VIEW_MS,
    FeedbackEvent,
    Group,
    GroupRule,
    MismatchError,
    PersonalConfig,
    as_code,
)

__all__ = ["CorruptStateError", "ForeignStateError", "PersonalError", "PersonalLayer", "group", "labels"]

_ACTIONS = frozenset({"click", "like", "follow", "comment", "share", "profile_enter", "dislike"})
_VIEWS = {"long_view": LONG_VIEW_MS, "effective_view": EFFECTIVE_VIEW_MS}
_VERSION = 1
_F32 = np.dtype("<f4")
_ROUNDING = 1.001  # slack for the float32 sums behind |m|


class PersonalError(MismatchError, ValueError):
    """A saved state cannot be used."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__("the personal state", expected, got)


class CorruptStateError(PersonalError):
    """Bytes that are cut or changed, or numbers that no learning can produce."""


class ForeignStateError(PersonalError):
    """The state of another version, bundle, user or config."""


class _State(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    bundle: str
    user_id: int
    tasks: tuple[str, ...]
    config: PersonalConfig
    events: int
    mean: bytes
    variance: bytes


_read_state = msgspec.msgpack.Decoder(_State).decode  # created at import, by one thread; see `pocketrank.device.codec`


class PersonalLayer:
    """One user's layer over one bundle's model, with K tasks and N candidates. Not for use from several threads at once.

    Before it has learned anything, its probabilities are the shipped ones bit for bit. Whatever it learns, the log-odds of a
    task move by no more than drift_max · hypot(user, category), and within a category the order stays as shipped.
    """

    def __init__(self, tasks: Sequence[str], *, bundle: str, user_id: int | str, config: PersonalConfig | None = None) -> None:
        """`tasks` are the model's outputs, and `bundle` is the name and serial of the bundle that the model is from.

        Raises ValueError when the config has a task that the model does not have.
        """
        self._config = config or PersonalConfig()
        self.tasks, self.user_id, self._bundle = tuple(tasks), as_code(user_id, "$.user_id"), bundle
        if unknown := set(self._config.tasks) - set(self.tasks):
            raise ValueError(f"expected tasks among {', '.join(self.tasks)}, got {', '.join(sorted(unknown))}")
        # Row 0 is the user. Row 1 is the unknown category: its prior has no variance, so its weight stays 0.
        deviation = np.zeros((2 + self._config.buckets, len(self.tasks)), np.float32)
        for k, task in enumerate(self.tasks):
            if task in self._config.tasks:
                deviation[0, k], deviation[2:, k] = self._config.tasks[task].user, self._config.tasks[task].category
        self._prior = np.square(deviation)
        self._precision = np.divide(1, self._prior, out=np.zeros_like(self._prior), where=self._prior > 0)
        self._mean = np.zeros_like(self._prior)
        self._variance = self._prior.copy()
        self._keep = np.float32(math.exp(-self._config.forget))
        self.events = 0
        """Number of impressions that the layer has learned from."""

    @property
    def drift(self) -> float:
        """Distance of the layer from the shipped model, 0..drift_max: the largest |m| of all tasks."""
        return float(self._distance().max(initial=0))

    def adjust(self, probabilities: NDArray[np.float32], categories: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
        """Return this user's probabilities f32 [N, K], from the shipped ones f32 [N, K] and category codes [N] (0 is unknown).

        0 and 1 stay as they are, and so do values that are no probabilities. Raises ValueError for another shape.
        """
        if probabilities.ndim != 2 or probabilities.shape[1] != len(self.tasks):
            raise ValueError(f"expected probabilities [N, {len(self.tasks)}], got {list(probabilities.shape)}")
        shift = self._mean[0]
        if categories is not None:
            if categories.shape != probabilities.shape[:1]:
                raise ValueError(f"expected categories [{len(probabilities)}], got {list(categories.shape)}")
            shift = shift + self._mean[np.where(categories > 0, 2 + (categories - 1) % self._config.buckets, 1)]
        possible = (probabilities >= 0) & (probabilities <= 1)
        adjusted = _shifted(np.where(possible, probabilities, np.float32(0)), shift)
        return np.where(possible, adjusted, probabilities)

    def learn(self, probabilities: NDArray[np.float32], labels: NDArray[np.float32], category: int = 0) -> bool:
        """Learn from one impression and return whether any task had a label.

        `probabilities` f32 [K] are the shipped ones, not the adjusted ones, from when the item was shown. `labels` are f32 [K].
        A task learns nothing from a label other than 0 and 1, such as NaN for unknown, nor where the shipped value is no
        probability. Raises ValueError for another shape.
        """
        if probabilities.shape != (len(self.tasks),) or labels.shape != probabilities.shape:
            shapes = f"{list(probabilities.shape)} and {list(labels.shape)}"
            raise ValueError(f"expected probabilities and labels [{len(self.tasks)}], got {shapes}")
        known = ((labels == 0) | (labels == 1)) & (probabilities >= 0) & (probabilities <= 1)
        if not known.any():
            return False
        # Forget: m <- a m, v <- a² v + (1 - a²) v0.
        mean, variance = self._mean, self._variance
        keep = np.where(known, self._keep, np.float32(1))
        mean *= keep
        variance += (self._prior - variance) * (1 - keep * keep)
        # Learn, for the user and the item's category: m <- m + g (y - p'), v <- v - g q v.
        rows = [0, 2 + (category - 1) % self._config.buckets if category > 0 else 1]
        m, v = mean[rows], variance[rows]
        p = _shifted(np.where(known, probabilities, np.float32(0)), m.sum(0))
        q = p * (1 - p)  # 0 where the label is unknown, as p is there
        gain = v / (1 + q * v.sum(0))
        mean[rows] = m + gain * (np.where(known, labels, p) - p)
        variance[rows] = v - gain * v * q
        # Bound: m <- m drift_max / |m|.
        distance = self._distance()
        if (distance > self._config.drift_max).any():
            mean *= np.minimum(1, self._config.drift_max / np.maximum(distance, np.finfo(np.float32).tiny))
        self.events += 1
        return True

    def _distance(self) -> NDArray[np.float32]:
        """Return |m| of each task [K]."""
        distance: NDArray[np.float32] = np.sqrt(np.vecdot(self._mean.T, (self._mean * self._precision).T))
        return distance

    def state(self) -> bytes:
        """Return what was learned as bytes: MessagePack behind its CRC-32, little-endian. 1.4 kB for four tasks."""
        state = _State(
            version=_VERSION,
            bundle=self._bundle,
            user_id=self.user_id,
            tasks=self.tasks,
            config=self._config,
            events=self.events,
            mean=self._mean.astype(_F32).tobytes(),
            variance=self._variance.astype(_F32).tobytes(),
        )
        data = msgspec.msgpack.encode(state)
        return zlib.crc32(data).to_bytes(4, "little") + data

    @classmethod
    def restore(
        cls, data: bytes, tasks: Sequence[str], *, bundle: str, user_id: int | str, config: PersonalConfig | None = None
    ) -> PersonalLayer:
        """Return the layer whose `state` is `data`. The other arguments are those of a new layer.

        Raises `CorruptStateError` and `ForeignStateError`, after which a new layer can be used instead, and ValueError as a new
        layer does.
        """
        layer = cls(tasks, bundle=bundle, user_id=user_id, config=config)
        body = data[4:]
        if int.from_bytes(data[:4], "little") != zlib.crc32(body):
            raise CorruptStateError("the bytes that were written", f"{len(data)} bytes with another checksum")
        try:
            state = _read_state(body)
        except ValueError as error:  # msgspec's own errors are ValueErrors; so is bad UTF-8
            raise CorruptStateError("a state", str(error)) from None
        for name, expected, got in (
            ("version", _VERSION, state.version),
            ("bundle", bundle, state.bundle),
            ("user", layer.user_id, state.user_id),
            ("tasks", layer.tasks, state.tasks),
            ("config", layer._config, state.config),
        ):
            if got != expected:
                raise ForeignStateError(f"{name} {expected}", f"{got}")
        size = layer._prior.nbytes
        if not (state.events >= 0 and len(state.mean) == len(state.variance) == size):
            got = f"{len(state.mean)} and {len(state.variance)} bytes, {state.events} events"
            raise CorruptStateError(f"mean and variance of {size} bytes, and 0 or more events", got)
        layer._mean = np.frombuffer(state.mean, _F32).reshape(layer._prior.shape).astype(np.float32)
        layer._variance = np.frombuffer(state.variance, _F32).reshape(layer._prior.shape).astype(np.float32)
        layer.events = state.events
        sure = (layer._variance >= 0) & (layer._variance <= layer._prior * _ROUNDING)
        fixed = (layer._prior > 0) | (layer._mean == 0)
        if not ((sure & fixed).all() and layer.drift <= layer._config.drift_max * _ROUNDING):  # NaN fails both
            raise CorruptStateError("weights within their bounds", f"a drift of {layer.drift}")
        return layer


def _shifted(p: NDArray[np.float32], shift: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities with their log-odds moved by `shift`. A shift of 0 is exact, since in float32 p + (1 - p) is 1."""
    odds = p * np.exp(shift)
    result: NDArray[np.float32] = odds / (odds + (1 - p))
    return result


def labels(event: FeedbackEvent, tasks: Sequence[str], duration_ms: float | None) -> NDArray[np.float32]:
    """Return the labels of `tasks` that an impression's feedback gives: f32 [K], 0 or 1, or NaN where they are unknown.

    An action is the task of its name. `long_view` and `effective_view` need the item's `duration_ms`; with None or NaN they are
    unknown. What happens after the impression (`has_next`) is not known yet.
    """

    def label(task: str) -> float:
        if task in _ACTIONS:
            return float(getattr(event, task))
        if task in _VIEWS and duration_ms is not None and duration_ms >= 0:
            # Rounded to whole milliseconds: a duration read back from a feature is inexact, and a watch to the end counts.
            return float(max(0, event.watch_ms) >= round(min(duration_ms, _VIEWS[task])))
        return math.nan

    return np.array([label(task) for task in tasks], np.float32)


def group(events_seen: int, rule: GroupRule) -> Group:
    """Return the group of a user of whom a device remembers `events_seen` events."""
    return "new" if events_seen < rule.casual_from else "casual" if events_seen < rule.heavy_from else "heavy"
