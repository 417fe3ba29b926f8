"""A user's own last layer: what their feedback says beyond the shipped model, learned on the device and kept there.

To the log-odds that the shipped model gives for task k, the layer adds a weight of the user and one of the item's category ::

    odds'_k = odds_k exp(u_k + c_k[category])                 odds = p / (1 - p)

The shipped model is the prior: all weights are Gaussian around 0, as wide as users differ. An impression is one step of the
extended Kalman filter for logistic regression (Fahrmeir 1992) with a covariance kept diagonal by matching moments, as in
AdPredictor (Graepel et al. 2010). Of what was learned a share is forgotten at each step, so that a mood passes: without
feedback mean m and variance v return to those of the prior, 0 and v0. For the weights that the impression touches ::

    m  <-  a m                 v  <-  a² v + (1 - a²) v0      a = exp(-forget), for all weights of a task with a label
    m  <-  m + g (y - p')      v  <-  v - g q v               g = v / (1 + q sum(v)),  q = p' (1 - p')
    m  <-  m drift_max / |m|   where |m| > drift_max          |m|² = sum(m² / v0), over all weights of a task

Tasks do not touch one another: weights of another task's log-odds, a slope of the own ones and weights by duration were tried
and gained nothing (`benchmarks.personal`).

Errors::

    PersonalError              what was learned cannot be used; says expected and got. A new layer is the shipped model
    ├── CorruptStateError      bytes that are cut, changed or no state, or numbers that no learning leads to
    └── ForeignStateError      the state of another version, bundle, user or config
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import FeedbackEvent, Group, GroupRule, PersonalConfig, TaskPrior

__all__ = [
    "EFFECTIVE_VIEW_MS",
    "LONG_VIEW_MS",
    "CorruptStateError",
    "ForeignStateError",
    "Group",
    "PersonalConfig",
    "PersonalError",
    "PersonalLayer",
    "TaskPrior",
    "group",
    "labels",
]

LONG_VIEW_MS = 18_000
"""A watch of this, or of the whole item if that is shorter, is a long view (KuaiRand's definition, and the cloud's)."""
EFFECTIVE_VIEW_MS = 7_000
"""A watch of this, or of the whole item if that is shorter, is an effective view, as in the cloud."""

_ACTIONS = frozenset({"click", "like", "follow", "comment", "share", "profile_enter", "dislike"})
_VIEWS = {"long_view": LONG_VIEW_MS, "effective_view": EFFECTIVE_VIEW_MS}
_VERSION = 1
_F32 = np.dtype("<f4")
_ROUNDING = 1.001  # of the float32 sums behind |m|


class PersonalError(ValueError):
    """What was learned cannot be used. `expected` and `got` say why."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"personal state: expected {expected}, got {got}")
        self.expected, self.got = expected, got


class CorruptStateError(PersonalError):
    """Bytes that are cut, changed or no state, or numbers that no learning leads to."""


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


_read_state = msgspec.msgpack.Decoder(_State).decode  # made here, by one thread; see `pocketrank.device.codec`


class PersonalLayer:
    """One user's layer over one bundle's model. K tasks, N candidates. Not for use from several threads at once.

    With nothing learned its answers are the shipped probabilities bit for bit; whatever it learns, the log-odds of a task move
    by no more than drift_max · hypot(user, category), and within a category the order stays as shipped.
    """

    def __init__(self, tasks: Sequence[str], *, bundle: str, user_id: int, config: PersonalConfig | None = None) -> None:
        """`tasks` are those of the model's outputs; `bundle` names the bundle that the model came from, with its serial.

        Raises ValueError when the config has a task that the model has not.
        """
        self._config = config or PersonalConfig()
        self.tasks, self.user_id, self._bundle = tuple(tasks), user_id, bundle
        if unknown := set(self._config.tasks) - set(self.tasks):
            raise ValueError(f"expected tasks among {', '.join(self.tasks)}, got {', '.join(sorted(unknown))}")
        # Row 0 is the user, row 1 the unknown category, whose prior is a point: its weight stays 0 without a special case.
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
        """impressions learned from"""

    @property
    def drift(self) -> float:
        """How far the layer is from the shipped model, 0..drift_max: |m| of the task that is farthest."""
        return float(self._distance().max(initial=0))

    def adjust(self, probabilities: NDArray[np.float32], categories: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
        """This user's probabilities f32 [N, K] from the shipped ones, f32 [N, K], and category codes [N] (0 is unknown).

        0 and 1 stay what they are, and so does what is no probability. Raises ValueError for another shape.
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
        """Learn from one impression: the shipped (not the adjusted) probabilities f32 [K] at its time, and its labels f32 [K].

        A label other than 0 and 1 (NaN) is unknown and teaches nothing for its task, and so is one of what is no probability.
        False when nothing is known. Raises ValueError for another shape.
        """
        if probabilities.shape != (len(self.tasks),) or labels.shape != probabilities.shape:
            shapes = f"{list(probabilities.shape)} and {list(labels.shape)}"
            raise ValueError(f"expected probabilities and labels [{len(self.tasks)}], got {shapes}")
        known = ((labels == 0) | (labels == 1)) & (probabilities >= 0) & (probabilities <= 1)
        if not known.any():
            return False
        mean, variance = self._mean, self._variance
        keep = np.where(known, self._keep, np.float32(1))
        mean *= keep
        variance += (self._prior - variance) * (1 - keep * keep)
        rows = [0, 2 + (category - 1) % self._config.buckets if category > 0 else 1]
        m, v = mean[rows], variance[rows]
        p = _shifted(np.where(known, probabilities, np.float32(0)), m.sum(0))
        q = p * (1 - p)
        gain = v / (1 + q * v.sum(0))
        mean[rows] = m + gain * (np.where(known, labels, p) - p)
        variance[rows] = v - gain * v * (q * known)
        distance = self._distance()
        if (distance > self._config.drift_max).any():
            mean *= np.minimum(1, self._config.drift_max / np.maximum(distance, np.finfo(np.float32).tiny))
        self.events += 1
        return True

    def _distance(self) -> NDArray[np.float32]:
        """|m| by task [K]."""
        distance: NDArray[np.float32] = np.sqrt(np.vecdot(self._mean.T, (self._mean * self._precision).T))
        return distance

    def state(self) -> bytes:
        """All that was learned: a CRC-32 of what follows, little-endian, then MessagePack. 1.4 kB for four tasks."""
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
        cls, data: bytes, tasks: Sequence[str], *, bundle: str, user_id: int, config: PersonalConfig | None = None
    ) -> PersonalLayer:
        """The layer whose `state` is `data`; the other arguments are those of a new one, which is what to take if this raises.

        Raises `CorruptStateError`, `ForeignStateError`, and ValueError as a new layer does.
        """
        layer = cls(tasks, bundle=bundle, user_id=user_id, config=config)
        body = data[4:]
        if int.from_bytes(data[:4], "little") != zlib.crc32(body):
            raise CorruptStateError("bytes as they were written", f"{len(data)} others")
        try:
            state = _read_state(body)
        except ValueError as error:  # msgspec's own errors are ValueErrors; so is bad UTF-8
            raise CorruptStateError("a state", str(error)) from None
        for name, expected, got in (
            ("version", _VERSION, state.version),
            ("bundle", bundle, state.bundle),
            ("user", user_id, state.user_id),
            ("tasks", layer.tasks, state.tasks),
            ("config", layer._config, state.config),
        ):
            if got != expected:
                raise ForeignStateError(f"{name} {expected}", f"{got}")
        size = layer._prior.nbytes
        if not (state.events >= 0 and len(state.mean) == len(state.variance) == size):
            raise CorruptStateError(f"{size} bytes of each, after 0 or more events", f"{len(state.mean)} and {state.events}")
        layer._mean = np.frombuffer(state.mean, _F32).reshape(layer._prior.shape).astype(np.float32)
        layer._variance = np.frombuffer(state.variance, _F32).reshape(layer._prior.shape).astype(np.float32)
        layer.events = state.events
        sure = (layer._variance >= 0) & (layer._variance <= layer._prior * _ROUNDING)
        fixed = (layer._prior > 0) | (layer._mean == 0)
        if not ((sure & fixed).all() and layer.drift <= layer._config.drift_max * _ROUNDING):  # NaN fails both
            raise CorruptStateError("weights within their bounds", f"a drift of {layer.drift}")
        return layer


def _shifted(p: NDArray[np.float32], shift: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities whose log-odds are moved by `shift`. Exact where that is 0: in float32 p + (1 - p) is 1."""
    odds = p * np.exp(shift)
    result: NDArray[np.float32] = odds / (odds + (1 - p))
    return result


def labels(event: FeedbackEvent, tasks: Sequence[str], duration_ms: float | None) -> NDArray[np.float32]:
    """What an impression's feedback says of `tasks`: f32 [K], 0 or 1, NaN where it does not tell.

    Actions are tasks by their names. `long_view` and `effective_view` need the item's `duration_ms`, None or NaN where it is
    not known; what comes after the impression (`has_next`) is not known yet.
    """

    def label(task: str) -> float:
        if task in _ACTIONS:
            return float(getattr(event, task))
        if task in _VIEWS and duration_ms is not None and duration_ms >= 0:
            # Whole milliseconds: a duration read back from a feature is off by its rounding, and a watch to the end counts.
            return float(max(0, event.watch_ms) >= round(min(duration_ms, _VIEWS[task])))
        return math.nan

    return np.array([label(task) for task in tasks], np.float32)


def group(events_seen: int, rule: GroupRule) -> Group:
    """The group of a user of whom a device remembers `events_seen` events."""
    return "new" if events_seen < rule.casual_from else "casual" if events_seen < rule.heavy_from else "heavy"
