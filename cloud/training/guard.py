"""Notices that what is learned from is wrong, before users do: labels that are flipped, features that are mixed up.

Of each window of samples and each task it compares what was predicted, before anything was learned from it, with what was
observed: the sum of probabilities over the sum of labels, and the log loss over the loss of predicting the window's own rate.
What is usual is the mean of the windows before: a run may be off by a constant on the users of today. A window that is far from
what is usual is bad. When windows have been bad for very long, the world has changed, and what they show becomes usual.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Guard", "GuardConfig", "Verdict"]

Float = NDArray[np.float32]


@dataclass(frozen=True)
class GuardConfig:
    """Windows and bounds."""

    window: int = 2000
    """Samples of a window."""
    ratio: tuple[float, float] = (0.5, 2.0)
    """Least and largest predicted over observed, relative to what is usual."""
    loss: float = 1.25
    """Largest log loss over that of the window's own rate, relative to what is usual."""
    warm_up: int = 3
    """First windows that are good whatever they are, and whose mean is usual."""
    weight: float = 0.1
    """Of a good window in what is usual."""
    adopt_after: int = 300
    """Bad windows in a row after which what they show becomes usual."""
    labels_min: int = 30
    """Positive and negative labels of a task that a window needs to be judged by."""
    skew: float = 1.0
    """Distance of log odds, as served and as recomputed, from which on the inputs of a sample count as skewed."""
    skewed_share: float = 0.05
    """Share of skewed samples from which on they are reported."""


@dataclass(frozen=True)
class Verdict:
    """Of one window, by task; NaN where there were too few labels."""

    ratio: dict[str, float]
    loss: dict[str, float]
    skewed: float
    """Share of samples whose inputs are skewed."""
    bad: tuple[str, ...]
    """Tasks that are out of bounds."""


@dataclass
class Guard:
    """Guard over tasks of these names."""

    tasks: tuple[str, ...]
    config: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        self._usual = np.full((2, len(self.tasks)), np.nan)
        """[2, K] ratio and relative loss, NaN where nothing was judged yet."""
        self._windows = self._bad = 0
        self._clear()

    def _clear(self) -> None:
        self._sums = np.zeros((5, len(self.tasks)))
        self._samples = self._skewed = self._compared = 0

    def pack(self) -> bytes:
        """Return all that the guard knows."""
        numbers = [self._samples, self._skewed, self._compared, self._windows, self._bad]
        return np.concatenate([self._sums.ravel(), self._usual.ravel(), numbers]).tobytes()

    def unpack(self, data: bytes) -> None:
        """Go on with what `pack` returned. Raises `ValueError` for that of another number of tasks."""
        values = np.frombuffer(data)
        self._sums, self._usual = np.split(values[:-5].reshape(7, len(self.tasks)).copy(), [5])
        self._samples, self._skewed, self._compared, self._windows, self._bad = (int(value) for value in values[-5:])

    def add(
        self,
        probability: NDArray[np.float32],
        labels: NDArray[np.float32],
        served: NDArray[np.float32],
        fresh: NDArray[np.bool_],
    ) -> Verdict | None:
        """Take s samples into account: predictions [s, K], labels [s, K] with NaN for unknown ones, scores as served [s, K],
        and which of them [s] may be compared. Returns a verdict when a window is full."""
        p = probability.astype(np.float64).clip(1e-6, 1 - 1e-6)
        known = ~np.isnan(labels)
        y = np.nan_to_num(labels).astype(np.float64)
        loss = -(y * np.log(p) + (1 - y) * np.log(1 - p))
        self._sums += np.stack([(values * known).sum(0) for values in (p, y, 1 - y, loss, np.ones_like(p))])
        self._samples += int(known.any(1).sum())
        if fresh.any():
            q = served[fresh].astype(np.float64).clip(1e-6, 1 - 1e-6)
            far = np.abs(np.log(q / (1 - q)) - np.log(p[fresh] / (1 - p[fresh]))) > self.config.skew
            self._skewed += int(far.any(1).sum())
            self._compared += int(fresh.sum())
        if self._samples < self.config.window:
            return None
        verdict = self._judge()
        self._clear()
        return verdict

    def _judge(self) -> Verdict:
        c = self.config
        predicted, positive, negative, loss, known = self._sums
        enough = np.minimum(positive, negative) >= c.labels_min
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = positive / known
            own = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
            ratio = np.where(enough, predicted / positive, np.nan)
            relative = np.where(enough, loss / known / own, np.nan)
        now = np.stack([ratio, relative])
        usual = np.where(np.isnan(self._usual), now, self._usual)
        with np.errstate(invalid="ignore"):
            to_usual = now / usual
            bad = (to_usual[0] < c.ratio[0]) | (to_usual[0] > c.ratio[1]) | (to_usual[1] > c.loss)
        self._windows += 1
        if self._windows <= c.warm_up:
            bad[:] = False
        self._bad = self._bad + 1 if bad.any() else 0
        if self._bad > c.adopt_after:
            usual, bad, self._bad = now, np.zeros_like(bad), 0
        if not bad.any():
            weight = max(c.weight, 1 / self._windows)
            usual = np.where(np.isnan(now), usual, usual + weight * (now - usual))
        self._usual = usual
        return Verdict(
            ratio=dict(zip(self.tasks, ratio.tolist(), strict=True)),
            loss=dict(zip(self.tasks, relative.tolist(), strict=True)),
            skewed=self._skewed / max(1, self._compared),
            bad=tuple(task for task, is_bad in zip(self.tasks, bad.tolist(), strict=True) if is_bad),
        )
