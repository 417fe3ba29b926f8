"""The trial of a new bundle on this device: its models' times, failures and scores in their first runs in use.

They are compared with the figures of the previous bundle on this device, and with the range of its own scores at export. On the
path of a swipe that costs two clock reads and two appends; everything else happens between pages (`Trial.verdict`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import Form, ScoreRange, Stage
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.runtimes.base import OUTPUT_NAMES, Runtime, RuntimeRunError

__all__ = ["Figures", "Trial", "TrialConfig", "unwatch", "watch"]

_STAGES: tuple[Stage, ...] = ("whole", "watch", "search")  # the stages that score candidates


@dataclass(frozen=True)
class TrialConfig:
    """When a trial ends, and what fails it."""

    runs: int = 200
    """Runs after which a healthy bundle is trusted: some ten minutes of swiping."""
    failures: int = 5
    """Failures in a row that end a trial at once."""
    failure_share: float = 0.02
    """Share of runs that may fail in excess of the previous bundle's share; a failed run leaves cloud order."""
    ms_max: float = 50.0
    """Longest median run, in ms, whatever the previous bundle took."""
    slower: float = 2.0
    """Factor by which the median run may be slower than the previous bundle's."""
    ms_free: float = 2.0
    """Medians up to this many ms are never too slow: an eighth of a frame at 60 per second."""
    samples: int = 64
    """Runs whose scores are kept: 2 kB each for 60 candidates and 8 tasks."""
    drift: float = 3.0
    """Recorded standard deviations by which a task's mean score may differ. One user's mean differs by a part of one."""
    spread: float = 0.02
    """Smallest standard deviation of a task's scores, as a share of the recorded one: below it, all candidates score alike."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a trial so far, small enough to be saved. `scores` has count, sum and sum of squares by form and task."""

    failures: int = 0
    ms: tuple[float, ...] = ()
    scores: dict[Form, tuple[tuple[float, float, float], ...]] = {}

    @property
    def runs(self) -> int:
        """Runs that did not fail."""
        return len(self.ms)

    @property
    def median_ms(self) -> float:
        """Median time of a run in ms; 0 without runs."""
        return float(np.median(self.ms)) if self.ms else 0.0

    @property
    def failure_share(self) -> float:
        """Share of runs that failed; 0 without runs."""
        return self.failures / max(1, self.failures + self.runs)


class Trial:
    """The trial of one bundle. `ran`, `failed` and `scores` are called while swiping, `verdict` between pages."""

    def __init__(
        self,
        config: TrialConfig | None = None,
        *,
        ranges: Sequence[ScoreRange] = (),
        baseline: Figures | None = None,
        figures: Figures | None = None,
    ) -> None:
        """`ranges` are of the bundle, `baseline` of the previous one, `figures` of this trial before a restart."""
        self._config = config or TrialConfig()
        self._ranges = {r.form: r for r in ranges}
        self._baseline, self._figures = baseline, figures or Figures()
        self._ms: list[float] = []
        self._scores: list[tuple[Form, NDArray[np.float32], NDArray[np.float32] | None]] = []
        self.samples_left = self._config.samples
        """Number of runs whose scores are still to be recorded."""
        self._failures = self._failures_in_a_row = 0
        self._kinds: dict[str, int] = {}

    def ran(self, ms: float) -> None:
        """Record a run of `ms`."""
        self._ms.append(ms)
        self._failures_in_a_row = 0

    def failed(self, kind: str) -> None:
        """Record a failed run."""
        self._failures += 1
        self._failures_in_a_row += 1
        self._kinds[kind] = self._kinds.get(kind, 0) + 1

    def scores(self, form: Form, scores: NDArray[np.float32], mask: NDArray[np.float32] | None = None) -> None:
        """Record a copy of a run's scores [n, tasks], of real candidates where `mask` [n] is 1, while `samples_left`."""
        if self.samples_left:
            self.samples_left -= 1
            self._scores.append((form, scores.copy(), None if mask is None else mask.copy()))

    @property
    def figures(self) -> Figures:
        """All figures so far, to be saved for the next start."""
        ms, scores, failures = self._ms, self._scores, self._failures
        self._ms, self._scores, self._failures = [], [], 0
        old = self._figures
        sums = {form: np.array(rows) for form, rows in old.scores.items()}
        samples: dict[Form, list[NDArray[np.float32]]] = {}
        for form, padded, mask in scores:
            sample = padded if mask is None else padded[mask > 0]
            if np.isfinite(sample).all():
                samples.setdefault(form, []).append(sample)
            else:
                failures += 1
                self._kinds["scores"] = self._kinds.get("scores", 0) + 1
        for name, parts in samples.items():
            wide = np.concatenate(parts).astype(np.float64)
            row = np.stack([np.full(wide.shape[1], len(wide)), wide.sum(0), (wide**2).sum(0)], 1)
            sums[name] = sums[name] + row if name in sums else row
        self._figures = Figures(
            failures=old.failures + failures,
            ms=(*old.ms, *(round(x, 3) for x in ms))[: self._config.runs],
            scores={form: tuple(map(tuple, rows.tolist())) for form, rows in sums.items()},
        )
        return self._figures

    def verdict(self) -> str | None:
        """Return what failed, an empty text for a healthy bundle, and None while the trial runs."""
        config, seen = self._config, self.figures
        # A broken model fails at once; everything else is judged after enough runs.
        if self._failures_in_a_row >= config.failures:
            return f"{self._failures_in_a_row} failures in a row: {self._failure_kinds()}"
        if seen.runs + seen.failures < config.runs:
            return None
        base = self._baseline
        allowed = config.failure_share + (0 if base is None else base.failure_share)
        if seen.failure_share > allowed:
            return f"{seen.failure_share:.0%} of runs failed: {self._failure_kinds()}"
        limit = config.ms_max if base is None or not base.runs else min(config.ms_max, config.slower * base.median_ms)
        if seen.median_ms > max(limit, min(config.ms_free, config.ms_max)):
            return f"Expected a median run of at most {limit:.2f} ms, got {seen.median_ms:.2f} ms"
        return self._drift(seen)

    def _drift(self, seen: Figures) -> str:
        for form, rows in seen.scores.items():
            expected = self._ranges.get(form)
            if expected is None or len(rows) != len(expected.mean):
                continue
            for task, (count, total, squares) in enumerate(rows):
                mean = total / count
                std = max(0.0, squares / count - mean**2) ** 0.5
                if abs(mean - expected.mean[task]) > self._config.drift * expected.std[task]:
                    return f"task {task} has a mean score of {mean:.3g}, {expected.mean[task]:.3g} at export"
                if std < self._config.spread * expected.std[task]:
                    return f"scores of task {task} have a standard deviation of {std:.3g}, {expected.std[task]:.3g} at export"
        return ""

    def _failure_kinds(self) -> str:
        return ", ".join(f"{kind} {count}" for kind, count in self._kinds.items()) or "before a restart"


class _Watched(Runtime):
    """A runtime that reports its runs to a trial."""

    def __init__(self, inner: Runtime, trial: Trial, form: Form, stage: Stage) -> None:
        self.inner, self._trial, self._form = inner, trial, form
        self.input_names, self.list_sizes, self.events = inner.input_names, inner.list_sizes, inner.events
        self._scores = OUTPUT_NAMES[stage].index("scores")

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """See `Runtime.run_all`."""
        start = time.perf_counter_ns()
        try:
            outputs = self.inner.run_all(inputs)
        except RuntimeRunError:
            self._trial.failed("run")
            raise
        trial, scores = self._trial, outputs[self._scores][0]
        first = scores[0, 0]
        if first != first:  # NaN is seldom alone, and checking all scores would cost more than the rest of the trial
            trial.failed("scores")
            return outputs
        trial.ran((time.perf_counter_ns() - start) / 1e6)
        if trial.samples_left:
            mask = inputs.get("candidate_mask")
            trial.scores(self._form, scores, None if mask is None else mask[0])
        return outputs


def watch(ranker: Ranker, trial: Trial) -> None:
    """Report every run of the ranker's models that scores candidates to `trial`."""
    for form, stages in ranker.runtimes.items():
        for stage in _STAGES:
            if stage in stages:
                stages[stage] = _Watched(stages[stage], trial, form, stage)


def unwatch(ranker: Ranker) -> None:
    """Undo `watch`: a trusted bundle runs without it."""
    for stages in ranker.runtimes.values():
        stages.update({stage: r.inner for stage, r in stages.items() if isinstance(r, _Watched)})
