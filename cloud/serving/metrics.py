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

A child of a metric is looked up once and kept: with it one observation takes 2 to 3 µs, and looking it up takes as long again.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from cloud.serving.page import PageObserver
from cloud.serving.shared_metrics import all_workers, prepare_metrics
from cloud.serving.telemetry import DeviceTelemetry
from device.contract import FeedbackReceipt

__all__ = ["ServingMetrics", "method_label", "route_label"]

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_CANDIDATES = (0, 1, 5, 10, 20, 30, 50, 100, 200, 500, 1000)
_PAGE = "/v1/page"


class ServingMetrics(PageObserver):
    """The counters and histograms, and their text form."""

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
        self._retrieved, self._returned = candidates.labels("retrieved"), candidates.labels("returned")
        self._of_request: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._of_stage: dict[tuple[str, str], Histogram] = {}
        self._of_reason: dict[tuple[Counter, str], Counter] = {}
        for reason in ("unknown", "not_asked"):
            self._reason(self._without, reason)

    def add(self, devices: DeviceTelemetry) -> None:
        """Expose what devices tell of themselves, too."""
        self._registry.register(devices)

    def stage(self, name: str, seconds: float, route: str = _PAGE) -> None:
        """A stage took so long. Any name will do, as the pipeline's file gives them; each is a series for good."""
        child = self._of_stage.get((route, name))
        if child is None:
            child = self._of_stage[route, name] = self._stages.labels(route, name)
        child.observe(seconds)

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
        self._price.set(price)
        self._queue.set(queue)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request is answered. `route` and `method` are of a few: `route_label`, `method_label`."""
        children = self._of_request.get((route, method, status))
        if children is None:
            children = self._requests.labels(route, method, str(status)), self._seconds.labels(route)
            self._of_request[route, method, status] = children
        children[0].inc()
        children[1].observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """The exposition, of all workers together, and its content type."""
        return generate_latest(all_workers() or self._registry), CONTENT_TYPE_LATEST

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
