"""Coverage and drift of the inputs of pages, beside those of training (`pocketrank.cloud.published.profile`).

::

    pocketrank_feature_drift{feature}            population stability index; NaN while too few pages are counted
    pocketrank_feature_coverage{feature, where}  share of known values in `training`, and in `serving`; NaN without any
    pocketrank_feature_pages{where}              pages that were counted

A run without a profile has no such metrics. One page in `DriftConfig.stride` is counted, for a window of time. The counts of
all workers are added up when one of them is scraped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from time import monotonic
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.pipeline.stage import Query
from pocketrank.cloud.published.profile import Bins, InputProfiles, Profile, drift
from pocketrank.cloud.published.published import PublishedRecord
from pocketrank.cloud.serving.telemetry.shared_metrics import SharedCounts
from pocketrank.device.codec import from_block
from pocketrank.device.contract import Page

__all__ = ["DriftConfig", "FeatureDrift"]

_DAY_S = 86_400.0
_HOUR, _ITEM_KNOWN = "request.hour", "item.known"
_REQUEST = ("user.known", "history.length", "request.scene", _HOUR)
_UNKNOWN_ID = np.iinfo(np.int64).min


@dataclass(frozen=True)
class DriftConfig:
    """How many pages are counted, and for how long."""

    stride: int = 17
    """One page in so many is counted, in the order of requests: a prime, because traffic may alternate by twos or tens.
    Counting a page takes some 100 µs."""
    window_s: float = 3600.0
    """Age in seconds at which pages are counted no longer. The hour of the day is compared from a day on."""
    buckets: int = 6
    """Parts of the window, by which it moves on."""

    def __post_init__(self) -> None:
        """Raises ValueError for numbers out of range."""
        if self.stride < 1 or not self.window_s > 0 or self.buckets < 1:
            raise ValueError(f"Expected stride, buckets >= 1 and window_s > 0, got {self}")


class _Window:
    """Counts of the inputs of the pages that were made from one run, of those `columns` that its pages have."""

    def __init__(
        self,
        profile: Profile,
        record: PublishedRecord,
        columns: Collection[str],
        config: DriftConfig,
        clock: Callable[[], float],
    ) -> None:
        self._history = tuple(f"history.{name}" for name in (*HISTORY_FEEDBACK, *record.actions))
        self._scenes = record.scenes
        known = {"page": {*_REQUEST, *self._history}, "candidate": {_ITEM_KNOWN, *columns}}
        if config.window_s < _DAY_S:
            known["page"].discard(_HOUR)
        self.features = tuple(one for one in profile.features if one.name in known[one.of])
        ends = np.cumsum([1, *(one.bins for one in self.features)])  # pages first
        starts = dict(zip((one.name for one in self.features), ends.tolist(), strict=False))
        self._groups = list[tuple[str, tuple[str, ...], Bins, NDArray[np.int64]]]()
        for of in ("page", "candidate"):
            for are_codes in (False, True):
                group = [one for one in self.features if one.of == of and (one.codes is not None) == are_codes]
                if group:
                    names = tuple(one.name for one in group)
                    self._groups.append((of, names, Bins(group), np.array([starts[name] for name in names])))
        self._counts = np.zeros((config.buckets, int(ends[-1])), np.int64)
        self._clock, self._bucket_s = clock, config.window_s / config.buckets
        self._turn = int(clock() / self._bucket_s)

    def add(self, query: Query, page: Page) -> None:
        """Count a page."""
        columns = {"page": self._request(query), "candidate": _candidates(page)}
        places = [
            (bins(np.stack([columns[of][name] for name in names], 1)) + starts).ravel()
            for of, names, bins, starts in self._groups
        ]
        counts = self._counts[self._move()]
        counts += np.bincount(np.concatenate([np.zeros(1, np.int64), *places]), minlength=len(counts))

    def counts(self) -> NDArray[np.int64]:
        """Return the counts of the window: of pages, and then of the bins of all features."""
        self._move()
        return np.asarray(self._counts.sum(0))

    def profile(self, counts: NDArray[np.int64]) -> Profile:
        """Return counts as a profile."""
        ends = np.cumsum([1, *(one.bins for one in self.features)]).tolist()
        parts = [tuple(counts[start:end].tolist()) for start, end in pairwise(ends)]
        features = [replace(one, counts=part) for one, part in zip(self.features, parts, strict=True)]
        return Profile(pages=int(counts[0]), features=tuple(features))

    def _move(self) -> int:
        """Empty the buckets whose time is over. Returns the number of the present one."""
        turn, buckets = int(self._clock() / self._bucket_s), len(self._counts)
        for passed in range(max(self._turn + 1, turn - buckets + 1), turn + 1):
            self._counts[passed % buckets] = 0
        self._turn = turn
        return turn % buckets

    def _request(self, query: Query) -> Mapping[str, NDArray[Any]]:
        """Return the inputs that a page has once, as arrays [1]."""
        feedback, scene = query.history.feedback, query.request.scene
        means = feedback.mean(0) if len(feedback) else np.full(feedback.shape[1], np.nan)
        known, scene = 1.0 if query.user else np.nan, scene + 1 if 0 <= scene < self._scenes - 1 else 0
        values = (known, len(feedback), scene, query.hour + 1, *means.tolist())
        return {name: np.array([value]) for name, value in zip((*_REQUEST, *self._history), values, strict=True)}


def _candidates(page: Page) -> Mapping[str, NDArray[Any]]:
    """Return the columns of a page's candidates, as arrays [n]."""
    sent = page.candidates
    columns = {_ITEM_KNOWN: np.where(from_block(sent.item_id) == _UNKNOWN_ID, np.nan, 1.0)}
    for part in (sent.floats, sent.categories):
        columns |= zip(part.names, from_block(part.values).T, strict=True)
    return columns


class FeatureDrift(Collector):
    """Counts of the inputs of the pages that this worker makes, and the metrics of all workers. For the one thread of an event
    loop. `clock` returns seconds and is monotonic.
    """

    def __init__(self, config: DriftConfig = DriftConfig(), clock: Callable[[], float] = monotonic) -> None:
        self._config, self._clock = config, clock
        self._shared = SharedCounts("features")
        self._served: tuple[str, Profile, _Window, bytes] | None = None
        self._skip = 0

    def serve(self, run: str, profile: Profile | None, record: PublishedRecord, columns: Collection[str]) -> None:
        """Start anew for the pages of a run, which have these `columns`. Without a profile nothing is counted."""
        self._served, self._skip = None, 0
        if profile is not None:
            window = _Window(profile, record, columns, self._config, self._clock)
            key = blake2b(msgspec.json.encode((run, window.features)), digest_size=SharedCounts.KEY_BYTES).digest()
            self._served = run, profile, window, key

    def __call__(self, query: Query, page: Page) -> None:
        """Count a page if it is its turn."""
        if self._served is None:
            return
        if self._skip:
            self._skip -= 1
            return
        self._skip = self._config.stride - 1
        self._served[2].add(query, page)

    def flush(self) -> None:
        """Pass the counts on to the other workers."""
        if self._served is not None:
            _, _, window, key = self._served
            self._shared.write(key, window.counts())

    def profiles(self) -> InputProfiles | None:
        """Return what all workers have counted, beside the profile of the run; None for a run without a profile."""
        if self._served is None:
            return None
        self.flush()
        run, training, window, key = self._served
        serving = window.profile(self._shared.total(key))
        return InputProfiles(run=run, window_s=self._config.window_s, training=training, serving=serving)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        drifts = GaugeMetricFamily("pocketrank_feature_drift", "Population stability index of an input.", labels=["feature"])
        about = "Share of known values of an input."
        coverage = GaugeMetricFamily("pocketrank_feature_coverage", about, labels=["feature", "where"])
        pages = GaugeMetricFamily("pocketrank_feature_pages", "Pages whose inputs were counted.", labels=["where"])
        if (found := self.profiles()) is not None:
            report = drift(found.training, found.serving)
            for where, count in report["pages"].items():
                pages.add_metric([where], count)
            for name, feature in report["features"].items():
                if feature["serving"] is not None:
                    drifts.add_metric([name], _number(feature["psi"]))
                    for where in report["pages"]:
                        coverage.add_metric([name, where], _number(feature[where]["coverage"]))
        yield from (drifts, coverage, pages)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
