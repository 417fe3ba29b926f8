"""Whether a new bundle does well on this device: its models' times, failures and scores in their first runs in use.

They are compared with what the bundle before it did here, and with what its own scores looked like when it was exported. On the
path of a swipe that is two clock reads and two appends; everything else happens between pages (`Trial.verdict`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import Form, ScoreRange, Stage
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.runtimes.base import OUTPUT_NAMES, Runtime, RuntimeRunError

__all__ = ["Figures", "Trial", "TrialConfig", "Verdict", "unwatch", "watch"]

_STAGES: tuple[Stage, ...] = ("whole", "watch", "search")  # those that score candidates


@dataclass(frozen=True)
class TrialConfig:
    """When a trial is over, and what fails it."""

    runs: int = 200
    """Runs after which a bundle that did well is trusted: some ten minutes of swiping."""
    failures: int = 5
    """Failures in a row that end a trial at once."""
    failure_share: float = 0.02
    """Share of runs that may fail beyond the previous bundle's share; the session ranks those in cloud order."""
    ms_max: float = 50.0
    """Longest median run, in ms, whatever the previous bundle took."""
    slower: float = 2.0
    """How many times the previous bundle's median a run may take."""
    ms_free: float = 2.0
    """Medians up to this many ms are never too slow: an eighth of a frame at 60 per second."""
    samples: int = 64
    """Runs whose scores are kept: of 60 candidates and 8 tasks, 2 kB each."""
    drift: float = 3.0
    """How many of the recorded standard deviations a task's mean score may be off. One user's mean is off by part of one."""
    spread: float = 0.02
    """Smallest standard deviation of a task's scores, as a share of the recorded one: below, all candidates are the same."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial saw so far, small enough to be kept on disk. `scores` counts, sums and sums squares by form and task."""

    failures: int = 0
    ms: tuple[float, ...] = ()
    scores: dict[Form, tuple[tuple[float, float, float], ...]] = {}

    @property
    def runs(self) -> int:
        """Runs that came to an end."""
        return len(self.ms)

    @property
    def median_ms(self) -> float:
        """Of a run; 0 without any."""
        return float(np.median(self.ms)) if self.ms else 0.0

    @property
    def failure_share(self) -> float:
        """Of all runs; 0 without any."""
        return self.failures / max(1, self.failures + self.runs)


class Verdict(NamedTuple):
    """How a trial ended. `why` says what was wrong, and is empty when nothing was."""

    healthy: bool
    why: str


class Trial:
    """Watches one bundle. `ran`, `failed` and `scores` are told while swiping, `verdict` is asked between pages."""

    def __init__(
        self,
        config: TrialConfig | None = None,
        *,
        ranges: Sequence[ScoreRange] = (),
        baseline: Figures | None = None,
        figures: Figures | None = None,
    ) -> None:
        """`ranges` are the bundle's own, `baseline` what the bundle before it did, `figures` what was seen before a restart."""
        self._config = config or TrialConfig()
        self._ranges = {r.form: r for r in ranges}
        self._baseline, self._figures = baseline, figures or Figures()
        self._ms: list[float] = []
        self._scores: list[tuple[Form, NDArray[np.float32], NDArray[np.float32] | None]] = []
        self.wants = self._config.samples
        """Runs whose scores it still wants."""
        self._failures = self._row = 0
        self._kinds: dict[str, int] = {}

    def ran(self, ms: float) -> None:
        """A run came to an end after so long."""
        self._ms.append(ms)
        self._row = 0

    def failed(self, kind: str) -> None:
        """A run failed."""
        self._failures += 1
        self._row += 1
        self._kinds[kind] = self._kinds.get(kind, 0) + 1

    def scores(self, form: Form, scores: NDArray[np.float32], mask: NDArray[np.float32] | None = None) -> None:
        """A run's scores [n, tasks], of real candidates where `mask` [n] is 1. They are copied; later ones than it `wants` are
        passed over.
        """
        if self.wants:
            self.wants -= 1
            self._scores.append((form, scores.copy(), None if mask is None else mask.copy()))

    @property
    def figures(self) -> Figures:
        """All that it saw, to be kept over a restart."""
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

    def verdict(self) -> Verdict | None:
        """How it ended, None while it goes on."""
        config, seen = self._config, self.figures
        if self._row >= config.failures:
            return Verdict(False, f"{self._row} failures in a row: {self._told()}")
        if seen.runs + seen.failures < config.runs:
            return None
        base = self._baseline
        allowed = config.failure_share + (0 if base is None else base.failure_share)
        if seen.failure_share > allowed:
            return Verdict(False, f"{seen.failure_share:.0%} of runs failed: {self._told()}")
        limit = config.ms_max if base is None or not base.runs else min(config.ms_max, config.slower * base.median_ms)
        if seen.median_ms > max(limit, min(config.ms_free, config.ms_max)):
            return Verdict(False, f"a median run of {seen.median_ms:.2f} ms, at most {limit:.2f} were expected")
        return self._drift(seen) or Verdict(True, "")

    def _drift(self, seen: Figures) -> Verdict | None:
        for form, rows in seen.scores.items():
            expected = self._ranges.get(form)
            if expected is None or len(rows) != len(expected.mean):
                continue
            for task, (count, total, squares) in enumerate(rows):
                mean = total / count
                std = max(0.0, squares / count - mean**2) ** 0.5
                if abs(mean - expected.mean[task]) > self._config.drift * expected.std[task]:
                    return Verdict(False, f"task {task} has a mean score of {mean:.3g}, recorded was {expected.mean[task]:.3g}")
                if std < self._config.spread * expected.std[task]:
                    return Verdict(False, f"scores of task {task} spread {std:.3g}, recorded were {expected.std[task]:.3g}")
        return None

    def _told(self) -> str:
        return ", ".join(f"{kind} {count}" for kind, count in self._kinds.items()) or "before a restart"


class _Watched(Runtime):
    """A runtime that tells a trial what it does."""

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
        if first != first:  # NaN seldom comes alone, and looking at all of them would cost more than the rest
            trial.failed("scores")
            return outputs
        trial.ran((time.perf_counter_ns() - start) / 1e6)
        if trial.wants:
            mask = inputs.get("candidate_mask")
            trial.scores(self._form, scores, None if mask is None else mask[0])
        return outputs


def watch(ranker: Ranker, trial: Trial) -> None:
    """Have `trial` told of every run of the ranker's models that scores candidates."""
    for form, stages in ranker.runtimes.items():
        for stage in _STAGES:
            if stage in stages:
                stages[stage] = _Watched(stages[stage], trial, form, stage)


def unwatch(ranker: Ranker) -> None:
    """Undo `watch`: a bundle that is trusted runs as it is."""
    for stages in ranker.runtimes.values():
        stages.update({stage: r.inner for stage, r in stages.items() if isinstance(r, _Watched)})
