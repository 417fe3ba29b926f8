"""Prometheus metrics of a server. Each server has a registry of its own; the metrics of several workers are added up.

::

    pocketrank_requests_total{route, method, status}      answered requests
    pocketrank_request_seconds{route}                     a histogram: from the head of a request to the end of its answer
    pocketrank_stage_seconds{route, stage}                a histogram: one stage of a page, by its name in the pipeline
    pocketrank_candidates{stage}                          a histogram: candidates of a page, retrieved and returned
    pocketrank_feedback_events_total{result}              accepted, duplicate, refused
    pocketrank_feedback_unknown_actions_total             actions of events that the run does not know
    pocketrank_pages_without_vectors_total{reason}        unknown, not_asked, unavailable
    pocketrank_degraded_total{reason}                     pages made with less than the pipeline asks for
    pocketrank_shed_total{reason}                         requests refused to keep the others in time (load shedding)
    pocketrank_compute_price                              now; the highest of all workers
    pocketrank_queue_length                               page requests that wait now; the sum of all workers
    pocketrank_unreadable{source}                         lines or records of `removed` and `feedback_log` that are skipped now
    pocketrank_served_run{run}                            number of workers that serve the run now
    pocketrank_run_switches_total                         times that a worker went over to another run
    pocketrank_feature_...                                coverage and drift of the inputs of pages (`telemetry.features`)

A page makes a dozen observations. prometheus_client takes 2 to 3 µs for each, and twice that when a model's run has emptied the
caches. So they are summed up here in a third of a microsecond and passed on by `flush`, which the application calls a few times
a second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns, time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pocketrank.cloud.pages.live_run import LiveRun
from pocketrank.cloud.pages.maker import PageObserver
from pocketrank.cloud.pipeline.stage import Query
from pocketrank.cloud.serving.telemetry.features import FeatureDrift
from pocketrank.cloud.serving.telemetry.shared_metrics import add_counts, all_workers, prepare_metrics
from pocketrank.cloud.serving.telemetry.tracing import RequestTracer
from pocketrank.device.contract import FeedbackReceipt, Page

__all__ = ["ServingMetrics", "method_label", "route_label"]

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_CANDIDATES = (0, 1, 5, 10, 20, 30, 50, 100, 200, 500, 1000)
_PAGE = "/v1/page"


class _Sums:
    """Observations of a histogram with labels since the last flush."""

    __slots__ = ("_bounds", "_child", "_counts", "_sum")

    def __init__(self, child: Histogram) -> None:
        self._child, self._bounds = child, child._upper_bounds
        self._counts, self._sum = [0] * len(self._bounds), 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        add_counts(self._child, self._counts, self._sum)
        self._counts, self._sum = [0] * len(self._counts), 0.0


class _Observations(dict[tuple[str, ...], _Sums]):
    """Observations of a histogram since the last flush, by its labels."""

    def __init__(self, histogram: Histogram) -> None:
        super().__init__()
        self._histogram = histogram

    def __missing__(self, labels: tuple[str, ...]) -> _Sums:
        sums = self[labels] = _Sums(self._histogram.labels(*labels))
        return sums


class ServingMetrics(PageObserver):
    """All metrics of a server. For the one thread of an event loop. `tracer` records a span for each stage, too."""

    def __init__(self, tracer: RequestTracer | None = None, features: FeatureDrift | None = None) -> None:
        prepare_metrics()
        self.registry = CollectorRegistry()
        """Where prometheus_client keeps the metrics of this process."""
        self.features = features or FeatureDrift()
        """The inputs of pages."""
        self.registry.register(self.features)
        self._tracer = tracer
        counter, histogram = partial(Counter, registry=self.registry), partial(Histogram, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        self._requests = counter("pocketrank_requests", "Answered requests.", ["route", "method", "status"])
        seconds = "From the head of a request to the end of its answer."
        self._seconds = _Observations(histogram("pocketrank_request_seconds", seconds, ["route"], buckets=_SECONDS))
        stages = histogram("pocketrank_stage_seconds", "One stage of a page.", ["route", "stage"], buckets=_SECONDS)
        self._stages = _Observations(stages)
        candidates = histogram("pocketrank_candidates", "Candidates of a page.", ["stage"], buckets=_CANDIDATES)
        self._candidates = _Observations(candidates)
        self._retrieved, self._returned = self._candidates["retrieved",], self._candidates["returned",]
        events = counter("pocketrank_feedback_events", "Feedback events.", ["result"])
        unknown = "Actions in feedback that the run does not know. They are in the log."
        self._unknown_actions = counter("pocketrank_feedback_unknown_actions", unknown)
        self._without_vectors = counter("pocketrank_pages_without_vectors", "Pages without vectors, by reason.", ["reason"])
        self._degraded = counter("pocketrank_degraded", "Pages made with less than the pipeline asks for.", ["reason"])
        self._shed = counter("pocketrank_shed", "Requests refused to keep the others in time.", ["reason"])
        price = "What one more page costs now, relative to normal load."
        self._price = gauge("pocketrank_compute_price", price, multiprocess_mode="livemax")
        self._queue = gauge("pocketrank_queue_length", "Page requests that wait now.", multiprocess_mode="livesum")
        skipped = "Lines or records that are skipped because they cannot be read."
        self._unreadable = gauge("pocketrank_unreadable", skipped, ["source"], multiprocess_mode="livemax")
        serving = "Number of workers that serve the run now."
        self._runs = gauge("pocketrank_served_run", serving, ["run"], multiprocess_mode="livesum")
        self._switches = counter("pocketrank_run_switches", "Times that a worker went over to another run.")
        number = "Number of the increment of the parameters in place; 0 are those of the run."
        self._parameters = gauge("pocketrank_parameters", number, multiprocess_mode="livemin")
        age = "Age in seconds of the newest event that the parameters in place have learned from."
        self._parameters_age = gauge("pocketrank_parameters_age_seconds", age, multiprocess_mode="livemax")
        changes = "Items and increments that a worker has applied, or refused, by kind."
        self._changes = gauge("pocketrank_topic_changes", changes, ["kind"], multiprocess_mode="livemax")
        self._live: Callable[[], LiveRun] | None = None
        self._run: str | None = None
        self._counts_unreadable: dict[str, Callable[[], int]] = {}
        self._accepted, self._duplicates = events.labels("accepted"), events.labels("duplicate")
        self._refused = events.labels("refused")
        self._answered = Counts[tuple[str, str, int]]()
        """Answers since the last flush by route, method and status."""
        self._load = 1.0, 0
        for reason in ("unknown", "not_asked"):
            self._without_vectors.labels(reason)

    def stage(self, name: str, seconds: float, route: str = _PAGE) -> None:
        """Observe the time of a stage. Each `name` becomes a series that stays; the pipeline's file bounds their number."""
        self._stages[route, name].observe(seconds)
        if self._tracer is not None:
            now = perf_counter_ns()
            self._tracer.stage(name, now - round(1e9 * seconds), now)

    def feedback(self, receipt: FeedbackReceipt) -> None:
        """Count the events of a receipt."""
        self._accepted.inc(receipt.accepted)
        self._duplicates.inc(receipt.duplicates)
        if receipt.refused:
            self._refused.inc(len(receipt.refused))

    def unknown_actions(self, count: int) -> None:
        """Count actions in feedback that the run does not know."""
        self._unknown_actions.inc(count)

    def page(self, retrieved: int, returned: int, without_vectors: str | None) -> None:
        """Count a page and its candidates."""
        self._retrieved.observe(retrieved)
        self._returned.observe(returned)
        if without_vectors is not None:
            self._without_vectors.labels(without_vectors).inc()

    def made(self, query: Query, page: Page) -> None:
        """Count the inputs of a page if it is its turn."""
        self.features(query, page)

    def degraded(self, reason: str) -> None:
        """Count a page made with less than the pipeline asks for. `reason` is one of a few names, not a text."""
        self._degraded.labels(reason).inc()

    def shed(self, reason: str) -> None:
        """Count a request refused to keep the others in time. `reason` is one of a few names, not a text."""
        self._shed.labels(reason).inc()

    def load(self, price: float, queue: int) -> None:
        """Set the current compute price and the number of page requests that wait."""
        self._load = price, queue

    def watch_live(self, live: Callable[[], LiveRun]) -> None:
        """Report what `live()` has applied of items and parameters at each flush."""
        self._live = live

    def watch_unreadable(self, source: str, count: Callable[[], int]) -> None:
        """Report `count()`, the number of lines or records of `source` that cannot be read, at each flush."""
        self._counts_unreadable[source] = count

    def serves(self, run: str) -> None:
        """Report that pages are made from the run of this name from now on."""
        if self._run is not None:
            self._runs.labels(self._run).set(0)
            self._switches.inc()
        self._runs.labels(run).set(1)
        self._run = run

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request. `route` and `method` are labels: see `route_label` and `method_label`."""
        self._answered[route, method, status] += 1
        self._seconds[route,].observe(seconds)

    def flush(self) -> None:
        """Pass the observations on to prometheus_client, where every worker's scrape finds them."""
        for observations in (self._seconds, self._stages, self._candidates):
            for sums in observations.values():
                sums.flush()
        for labels, count in self._answered.items():
            self._requests.labels(*labels).inc(count)
        self._answered.clear()
        price, queue = self._load
        self._price.set(price)
        self._queue.set(queue)
        for source, unreadable in self._counts_unreadable.items():
            self._unreadable.labels(source).set(unreadable())
        if self._live is not None:
            live = self._live()
            self._parameters.set(live.sequence)
            if live.event_ms:
                self._parameters_age.set(max(0.0, time() - live.event_ms / 1000))
            for kind, count in live.counts.items():
                self._changes.labels(kind).set(count)
        self.features.flush()

    def text(self) -> tuple[bytes, str]:
        """Return the metrics of all workers in Prometheus's text format, and its content type."""
        self.flush()
        if (registry := all_workers()) is not None:
            registry.register(self.features)
        return generate_latest(registry or self.registry), CONTENT_TYPE_LATEST


def method_label(method: str) -> str:
    """Return the label of a method: itself for the usual ones, else `other`, so that scanners create no series."""
    return method if method in ("GET", "POST", "HEAD", "OPTIONS") else "other"


def route_label(path: str, routes: dict[str, str]) -> str:
    """Return the label of a path, or `other`, so that scanners create no series.

    `routes` maps paths to labels. A path that ends with a slash stands for every path that begins with it.
    """
    if name := routes.get(path):
        return name
    return next((name for start, name in routes.items() if start.endswith("/") and path.startswith(start)), "other")
