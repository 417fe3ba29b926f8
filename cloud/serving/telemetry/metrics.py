"""What Prometheus reads of a server. One registry a server, so that two in a process do not mix; several workers add up.

::

    pocketrank_requests_total{route, method, status}      answered
    pocketrank_request_seconds{route}                     a histogram: from the head of a request to the end of its answer
    pocketrank_stage_seconds{route, stage}                a histogram: one stage of a page, by the pipeline's own names
    pocketrank_candidates{stage}                          a histogram: retrieved, returned
    pocketrank_feedback_events_total{result}              accepted, duplicate
    pocketrank_pages_without_vectors_total{reason}        unknown, not_asked
    pocketrank_degraded_total{reason}                     pages that were made with less than the pipeline says
    pocketrank_shed_total{reason}                         requests refused to keep the others in time
    pocketrank_compute_price                              of now; the highest of all workers
    pocketrank_queue_length                               pages that wait now, of all workers

A page makes a dozen observations, and prometheus_client takes 2 to 3 µs for each, twice that in the cold caches after a model's
run. So they are summed up here in a third of a microsecond and handed on by `flush`, which the application calls a few times a
second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pocketrank.cloud.pages.maker import PageObserver
from pocketrank.cloud.serving.telemetry.devices import DeviceTelemetry
from pocketrank.cloud.serving.telemetry.shared_metrics import all_workers, prepare_metrics
from pocketrank.device.contract import FeedbackReceipt

__all__ = ["ServingMetrics", "method_label", "route_label"]

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_CANDIDATES = (0, 1, 5, 10, 20, 30, 50, 100, 200, 500, 1000)
_PAGE = "/v1/page"


class _Count:
    """What one counter has counted since it was last flushed."""

    __slots__ = ("_child", "new")

    def __init__(self, child: Counter) -> None:
        self._child, self.new = child, 0

    def flush(self) -> None:
        if self.new:
            self._child.inc(self.new)
            self.new = 0


class _Sums:
    """What one histogram has observed since it was last flushed."""

    __slots__ = ("_bounds", "_child", "_counts", "_sum")

    def __init__(self, child: Histogram, bounds: Sequence[float]) -> None:
        self._child, self._bounds = child, tuple(bounds)
        self._counts, self._sum = [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        if not any(self._counts):
            return
        # prometheus_client has no public way to add several observations at once; its version is pinned, and a test holds it.
        for bucket, count in zip(self._child._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        self._child._sum.inc(self._sum)
        self._counts, self._sum = [0] * len(self._counts), 0.0


class ServingMetrics(PageObserver):
    """The counters and histograms, and their text form. For the one thread of an event loop."""

    def __init__(self) -> None:
        prepare_metrics()
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("pocketrank_requests", "Answered requests.", ["route", "method", "status"], registry=registry)
        self._seconds = Histogram(
            "pocketrank_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "pocketrank_stage_seconds", "One stage of a request.", ["route", "stage"], buckets=_SECONDS, registry=registry
        )
        candidates = Histogram(
            "pocketrank_candidates", "Candidates of a page.", ["stage"], buckets=_CANDIDATES, registry=registry
        )
        events = Counter("pocketrank_feedback_events", "Feedback events.", ["result"], registry=registry)
        self._without = Counter(
            "pocketrank_pages_without_vectors", "Pages without vectors, by reason.", ["reason"], registry=registry
        )
        self._degraded = Counter(
            "pocketrank_degraded", "Pages made with less than the pipeline says, by reason.", ["reason"], registry=registry
        )
        self._shed = Counter(
            "pocketrank_shed", "Requests refused to keep the others in time, by reason.", ["reason"], registry=registry
        )
        self._price = Gauge(
            "pocketrank_compute_price",
            "What one more page costs now, relative to normal load.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._queue = Gauge("pocketrank_queue_length", "Pages that wait now.", registry=registry, multiprocess_mode="livesum")
        self._accepted, self._duplicates = events.labels("accepted"), events.labels("duplicate")
        self._all_sums: list[_Sums] = []
        self._retrieved = self._sums(candidates.labels("retrieved"), _CANDIDATES)
        self._returned = self._sums(candidates.labels("returned"), _CANDIDATES)
        self._load = 1.0, 0
        self._of_request: dict[tuple[str, str, int], tuple[_Count, _Sums]] = {}
        self._of_route: dict[str, _Sums] = {}
        self._of_stage: dict[tuple[str, str], _Sums] = {}
        self._of_reason: dict[tuple[Counter, str], Counter] = {}
        for reason in ("unknown", "not_asked"):
            self._reason(self._without, reason)

    def add(self, devices: DeviceTelemetry) -> None:
        """Expose what devices tell of themselves, too."""
        self._registry.register(devices)

    def stage(self, name: str, seconds: float, route: str = _PAGE) -> None:
        """A stage took so long. Any name will do, as the pipeline's file gives them; each is a series for good."""
        sums = self._of_stage.get((route, name))
        if sums is None:
            sums = self._of_stage[route, name] = self._sums(self._stages.labels(route, name), _SECONDS)
        sums.observe(seconds)

    def feedback(self, receipt: FeedbackReceipt) -> None:
        """Events were taken in."""
        self._accepted.inc(receipt.accepted)
        self._duplicates.inc(receipt.duplicates)

    def page(self, retrieved: int, returned: int, without_vectors: str | None) -> None:
        """A page is made."""
        self._retrieved.observe(retrieved)
        self._returned.observe(returned)
        if without_vectors is not None:
            self._reason(self._without, without_vectors).inc()

    def degraded(self, reason: str) -> None:
        """A page was made with less than the pipeline says. `reason` is one of a few, not a text."""
        self._reason(self._degraded, reason).inc()

    def shed(self, reason: str) -> None:
        """A request was refused to keep the others in time. `reason` is one of a few, not a text."""
        self._reason(self._shed, reason).inc()

    def load(self, price: float, queue: int) -> None:
        """The compute price and the pages that wait, as of now."""
        self._load = price, queue

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request is answered. `route` and `method` are of a few: `route_label`, `method_label`."""
        seen = self._of_request.get((route, method, status))
        if seen is None:
            if route not in self._of_route:
                self._of_route[route] = self._sums(self._seconds.labels(route), _SECONDS)
            seen = _Count(self._requests.labels(route, method, str(status))), self._of_route[route]
            self._of_request[route, method, status] = seen
        seen[0].new += 1
        seen[1].observe(seconds)

    def flush(self) -> None:
        """Hand on what was observed, for whoever is scraped to tell."""
        for sums in self._all_sums:
            sums.flush()
        for count, _ in self._of_request.values():
            count.flush()
        price, queue = self._load
        self._price.set(price)
        self._queue.set(queue)

    def text(self) -> tuple[bytes, str]:
        """The exposition, of all workers together, and its content type."""
        self.flush()
        return generate_latest(all_workers() or self._registry), CONTENT_TYPE_LATEST

    def _sums(self, child: Histogram, bounds: Sequence[float]) -> _Sums:
        sums = _Sums(child, bounds)
        self._all_sums.append(sums)
        return sums

    def _reason(self, counter: Counter, reason: str) -> Counter:
        child = self._of_reason.get((counter, reason))
        if child is None:
            child = self._of_reason[counter, reason] = counter.labels(reason)
        return child


def method_label(method: str) -> str:
    """The name that a method is counted under: itself when it is a usual one, so that a scanner makes no labels."""
    return method if method in ("GET", "POST", "HEAD", "OPTIONS") else "other"


def route_label(path: str, routes: dict[str, str]) -> str:
    """The name that a path is counted under. `routes` maps a path, or with a slash at its end the beginning of one, to its
    name; any other path is `other`, so that a scanner makes no labels.
    """
    if name := routes.get(path):
        return name
    return next((name for start, name in routes.items() if start.endswith("/") and path.startswith(start)), "other")
