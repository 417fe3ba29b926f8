"""Whole swipes through the SDK, with the model's own run timed inside.

A swipe is `FeedSession.feedback(event)` and then `FeedSession.next()`: take in how the last item was watched, order what is
left, name the next one. Only the device's package is imported here, because `device_process` weighs what it imports.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from benchmarks.latency.timed import milliseconds
from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.codec import to_block
from pocketrank.device.contract import (
    Candidates,
    Columns,
    Ended,
    FeatureSpec,
    FeedbackEvent,
    Form,
    Format,
    Network,
    Orientation,
    Page,
    Stage,
)
from pocketrank.device.model.search import GREEDY
from pocketrank.device.offline.store import DeviceStore
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.ranking.watchdog import WatchdogConfig
from pocketrank.device.reports.telemetry import TelemetryConfig
from pocketrank.device.runtimes import STAGES, Runtime, open_stages
from pocketrank.device.session import FeedSession, SessionConfig
from pocketrank.device.strategies import AdSlots, Arranger, Cap, KeepBuffered, MinGap

__all__ = ["Kind", "SwipeBench", "TimedRuntime"]

Kind: TypeAlias = Literal["stages", "whole", "search"]
"""What makes the order: the stages, the whole model, or the stages and the bundle's list search."""

USER = 7
BEGIN_MS = 1_700_000_000_000
"""Any time will do; events are some seconds apart from there on."""
EVENT_GAP_MS = 9_000
"""Between two impressions."""
STRATEGIES = (KeepBuffered(), AdSlots(4, 6, every=10), Cap("category", 3, within=10), MinGap("owner", 3), MinGap("category", 2))
"""What a feed with ads and authors would ask for; `owner` is a name that no spec has, so that pages can carry it."""
_OWNERS = 40  # of the candidates of a page
_AD_SHARE = 0.1


class TimedRuntime(Runtime):
    """Another runtime, with the time that its runs took beside it."""

    def __init__(self, inner: Runtime) -> None:
        self.input_names, self.list_sizes, self.events = inner.input_names, inner.list_sizes, inner.events
        self._inner = inner
        self.ns = 0

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """See `Runtime.run_all`."""
        start = time.perf_counter_ns()
        outputs = self._inner.run_all(inputs)
        self.ns += time.perf_counter_ns() - start
        return outputs


class SwipeBench:
    """One session with a full history; each `step` is one swipe on a page of `candidates_max` unseen candidates."""

    def __init__(
        self,
        bundle: Bundle,
        form: Form,
        format: Format,
        kind: Kind = "stages",
        *,
        equipped: bool = False,
        store: Path | None = None,
    ) -> None:
        """`equipped` is with strategies, a watchdog and telemetry; a `store`, a file to be made, makes the outbox durable.

        Raises `BundleError`, `ModelRuntimeError`, `DatabaseError`.
        """
        self.form = form
        self._spec, self._version = bundle.spec, bundle.split_version
        runtimes = {}
        for each in bundle.forms(format):  # the other one is open too, as on a device
            paths = bundle.stages(each, format)
            wanted: Collection[Stage] = {"whole": ("whole",), "stages": STAGES, "search": paths.keys() - {"whole"}}[kind]
            opened = open_stages({stage: path for stage, path in paths.items() if stage in wanted}, format)
            runtimes[each] = {stage: TimedRuntime(runtime) for stage, runtime in opened.items()}
        self._timed = list(runtimes[form].values())
        ranker = Ranker(bundle.spec, bundle.split_version, runtimes, None if kind == "search" else GREEDY)
        self._now_ms = BEGIN_MS
        self.session = FeedSession(
            ranker,
            user_id=USER,
            session_id="bench",
            config=SessionConfig(watchdog=WatchdogConfig(), telemetry=TelemetryConfig()) if equipped else None,
            clock=lambda: self._now_ms,
            store=None if store is None else DeviceStore(store),
            strategies=Arranger(STRATEGIES) if equipped else None,
        )
        self._rng = np.random.default_rng(0)
        self._items = 0
        self.swipe_ns: list[int] = []
        self.run_ns: list[int] = []
        for _ in range(bundle.spec.events_max):
            self.session.feedback(self._event(self._first_of_a_page()))

    def step(self) -> None:
        """One timed swipe. Page and first item come before the clock starts: a page arrives in the background.

        Raises `BenchmarkError` when the model did not order the candidates, a fallback being no swipe worth timing.
        """
        event = self._event(self._first_of_a_page())
        for runtime in self._timed:
            runtime.ns = 0
        start = time.perf_counter_ns()
        self.session.feedback(event)
        self.session.next()
        self.swipe_ns.append(time.perf_counter_ns() - start)
        self.run_ns.append(sum(runtime.ns for runtime in self._timed))
        if self.session.form != self.form or self.session.counters.model_failed or self.session.counters.scores_bad:
            raise BenchmarkError("a swipe", f"an order by the {self.form} model", f"{self.session.counters}")

    def forget(self) -> None:
        """Discard the times so far."""
        self.swipe_ns.clear()
        self.run_ns.clear()

    def figures(self) -> dict[str, float]:
        """Milliseconds of a swipe and of the model's runs in it, and the median share of a swipe outside those runs."""
        swipe, run = np.array(self.swipe_ns), np.array(self.run_ns)
        return {
            **milliseconds(self.swipe_ns),
            "run_p50_ms": float(np.median(run)) / 1e6,
            "outside_p50_ms": float(np.median(swipe - run)) / 1e6,
            "sdk_overhead_share": float(np.median((swipe - run) / swipe)),
        }

    def _first_of_a_page(self) -> int:
        """Take a page of one more than the model's list and show its first item: a full list is left to be ordered."""
        self._now_ms += EVENT_GAP_MS
        self.session.take(self._page(self._spec, self._spec.candidates_max + 1))
        item = self.session.next()
        if item is None:
            raise BenchmarkError("a page", "an item to show", "none")
        return item

    def _page(self, spec: FeatureSpec, n: int) -> Page:
        rng, first = self._rng, self._items + 1
        self._items += n
        floats = np.stack([rng.uniform(f.min, f.max, n) / (f.scale or 1) for f in spec.candidate_floats], 1)
        codes = np.stack([rng.integers(0, c.size, n) for c in spec.candidate_categories], 1)
        owners, ads = rng.integers(1, _OWNERS, (n, 1)), rng.random((n, 1)) < _AD_SHARE
        names = (*(c.name for c in spec.candidate_categories), "owner", "ad")
        split = self.form == "split"
        return Page(
            page_id=f"p{first}",
            request_id="r",
            created_ms=self._now_ms,
            ttl_ms=3_600_000,
            candidates=Candidates(
                item_id=to_block(np.arange(first, first + n), "i8"),
                floats=Columns(names=tuple(f.name for f in spec.candidate_floats), values=to_block(floats, "f4")),
                categories=Columns(names=names, values=to_block(np.concatenate([codes, owners, ads], 1), "i4")),
                vector=to_block(rng.normal(size=(n, spec.vector_width)), "f2") if split else None,
            ),
            user_vector=to_block(rng.normal(size=spec.vector_width), "f2") if split else None,
            split_version=self._version if split else None,
        )

    def _event(self, item: int) -> FeedbackEvent:
        """All that a device reports of an impression."""
        position = self.session.position - 1
        return FeedbackEvent(
            event_id=f"e{position}",
            user_id=USER,
            session_id="bench",
            item_id=item,
            position=position,
            impression_ms=self._now_ms,
            watch_ms=int(self._rng.integers(500, EVENT_GAP_MS)),
            ended=Ended.SWIPE,
            click=True,
            volume=0.5,
            volume_change=0.0,
            muted=False,
            orientation=Orientation.PORTRAIT,
            playback_rate=1.0,
            pauses=0,
            seeks=0,
            scroll_speed=1.5,
            network=Network.WIFI,
            buffering_ms=120,
            battery_saver=False,
            backgrounded=False,
        )
