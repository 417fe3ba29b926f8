"""Traces of pages by OpenTelemetry, when configured: a span for the request, and one in it for each stage of the pipeline.

Configured by `TracingConfig.endpoint` or by OpenTelemetry's own environment (`OTEL_EXPORTER_OTLP_ENDPOINT`, or
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`; `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and the rest apply, too). Otherwise nothing of
OpenTelemetry is even imported, and the seam is a tracer whose methods do nothing. Spans leave by OTLP over HTTP in batches,
from a thread; when the collector cannot be reached they are dropped, and pages go on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from random import Random
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["RequestTracer", "TracingConfig", "make_tracer"]

_PAGE = "/v1/page"
_SAMPLER = "OTEL_TRACES_SAMPLER"
_PARENT = (b"traceparent", b"tracestate")
_NOTHING = nullcontext()


@dataclass(frozen=True)
class TracingConfig:
    """Where spans go, and how many."""

    endpoint: str | None = None
    """URL that spans are posted to, as `http://collector:4318/v1/traces`; None leaves it to the environment."""
    share: float = 0.01
    """Share of requests that are traced, unless `OTEL_TRACES_SAMPLER` says otherwise. Of requests with a sampled parent it is
    the same share, by the trace's id."""
    trust_parent: bool = False
    """Trace every request whose `traceparent` says it is sampled. Only behind a gateway that sets it: a device could have
    itself traced each time."""
    timeout_s: float = 5.0
    """Longest time for one batch, and for the last one when the server ends."""

    def __post_init__(self) -> None:
        """Raises ValueError for what is no share or time."""
        if not 0 <= self.share <= 1 or self.timeout_s <= 0:
            raise ValueError(f"Expected a share in 0..1 and timeout_s > 0, got {self}")


class RequestTracer:
    """Told of requests and of their stages. This one does nothing."""

    enabled = False
    """Whether anything becomes of what it is told."""

    def trace_page(self, headers: Iterable[tuple[bytes, bytes]], route: str = _PAGE) -> AbstractContextManager[None]:
        """While it lasts, a request is answered. `headers` are those of ASGI; a W3C `traceparent` among them is the parent."""
        return _NOTHING

    def stage(self, name: str, start_ns: int, end_ns: int) -> None:
        """A stage of the current request ran from one time of `perf_counter_ns` to another."""

    def answered(self, status: int, request_id: str) -> None:
        """The current request is answered with a status."""

    def close(self) -> None:
        """Send what is left."""


def make_tracer(config: TracingConfig | None = None) -> RequestTracer:
    """A tracer as configured, or one that does nothing. Each process makes its own, after it was started."""
    config = config or TracingConfig()
    said = os.environ.get
    named = config.endpoint or said("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or said("OTEL_EXPORTER_OTLP_ENDPOINT")
    off = said("OTEL_SDK_DISABLED", "").lower() == "true" or said("OTEL_TRACES_EXPORTER") == "none"
    return _OpenTelemetry(config) if named and not off else RequestTracer()


class _OpenTelemetry(RequestTracer):
    enabled = True

    def __init__(self, config: TracingConfig) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = _provider(config)
        self._tracer = self._provider.get_tracer("pocketrank")
        self._trace, self._parent_of = trace, TraceContextTextMapPropagator().extract
        self._wall_ns = time_ns() - perf_counter_ns()
        # Drawn here, because a span that is not sampled takes some 20 µs all the same.
        self._share = None if _SAMPLER in os.environ else config.share
        self._random = Random()

    def trace_page(self, headers: Iterable[tuple[bytes, bytes]], route: str = _PAGE) -> AbstractContextManager[None]:
        brought = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in _PARENT}
        if not brought and self._share is not None and self._random.random() >= self._share:
            return _NOTHING
        return self._span(brought, route)

    @contextmanager
    def _span(self, brought: dict[str, str], route: str) -> Iterator[None]:
        parent = self._parent_of(brought) if brought else None
        kind, attributes = self._trace.SpanKind.SERVER, {"http.route": route}
        with self._tracer.start_as_current_span(route, parent, kind, attributes):
            yield

    def stage(self, name: str, start_ns: int, end_ns: int) -> None:
        if self._trace.get_current_span().is_recording():
            span = self._tracer.start_span(name, start_time=self._wall_ns + start_ns)
            span.end(self._wall_ns + end_ns)

    def answered(self, status: int, request_id: str) -> None:
        span = self._trace.get_current_span()
        if span.is_recording():
            span.set_attribute("http.response.status_code", status)
            span.set_attribute("http.request.header.x-request-id", request_id)
            if status >= 500:
                span.set_status(self._trace.StatusCode.ERROR)

    def close(self) -> None:
        self._provider.shutdown()


def _provider(config: TracingConfig) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased

    resource = Resource.create({"service.instance.id": f"{os.uname().nodename}-{os.getpid()}"})
    if "OTEL_SERVICE_NAME" not in os.environ and "service.name" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        resource = resource.merge(Resource({"service.name": "pocketrank"}))
    sampler = None
    if _SAMPLER not in os.environ:
        share = TraceIdRatioBased(config.share)
        sampler = ParentBased(ALWAYS_ON, remote_parent_sampled=ALWAYS_ON if config.trust_parent else share)
    provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(config.endpoint, timeout=config.timeout_s)))
    return provider
