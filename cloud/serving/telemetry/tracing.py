"""Traces of pages by OpenTelemetry, when configured: a span for each request, and child spans for the pipeline's stages.

Configured by `TracingConfig.endpoint` or by OpenTelemetry's own environment (`OTEL_EXPORTER_OTLP_ENDPOINT`, or
`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`; `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and the rest apply, too). Otherwise
OpenTelemetry is not even imported, and there is no tracer. A thread sends the spans in batches by OTLP over HTTP.
When the collector cannot be reached, spans are dropped and pages are not affected.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from random import Random
from time import perf_counter_ns, time_ns

__all__ = ["RequestTracer", "TracingConfig", "make_tracer"]

_PAGE = "/v1/page"
_SAMPLER = "OTEL_TRACES_SAMPLER"
_PARENT = (b"traceparent", b"tracestate")


@dataclass(frozen=True)
class TracingConfig:
    """Where spans are sent, and how many."""

    endpoint: str | None = None
    """URL that spans are posted to, like `http://collector:4318/v1/traces`; None leaves it to the environment."""
    share: float = 0.01
    """Share of requests that are traced, unless `OTEL_TRACES_SAMPLER` is set. The same share of the requests with a sampled
    parent is traced, chosen by the trace's id."""
    trust_parent: bool = False
    """Trace every request whose `traceparent` is sampled. Only for servers behind a gateway that sets this header; otherwise a
    device could have all its requests traced."""
    timeout_s: float = 5.0
    """Longest time to send a batch, and to send the last one when the server ends."""

    def __post_init__(self) -> None:
        """Raises ValueError for a share or time out of range."""
        if not 0 <= self.share <= 1 or self.timeout_s <= 0:
            raise ValueError(f"Expected a share in 0..1 and timeout_s > 0, got {self}")


class RequestTracer:
    """Tracer of requests and their stages."""

    def __init__(self, config: TracingConfig) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.instance.id": f"{os.uname().nodename}-{os.getpid()}"})
        if "OTEL_SERVICE_NAME" not in os.environ and "service.name" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
            resource = resource.merge(Resource({"service.name": "pocketrank"}))
        self._share, sampler = None, None
        if _SAMPLER not in os.environ:
            # Sampled here and not by OpenTelemetry, where a span takes some 20 µs even if it is not sampled.
            self._share, share = config.share, TraceIdRatioBased(config.share)
            sampler = ParentBased(ALWAYS_ON, remote_parent_sampled=ALWAYS_ON if config.trust_parent else share)
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(config.endpoint, timeout=config.timeout_s)))
        self._tracer = self._provider.get_tracer("pocketrank")
        self._trace, self._parent_of = trace, TraceContextTextMapPropagator().extract
        self._wall_ns = time_ns() - perf_counter_ns()
        self._random = Random()

    def trace_page(self, headers: Iterable[tuple[bytes, bytes]], route: str = _PAGE) -> AbstractContextManager[object]:
        """Return a context that spans the answer to a request. A W3C `traceparent` among the ASGI `headers` is its parent."""
        parents = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in _PARENT}
        if not parents and self._share is not None and self._random.random() >= self._share:
            return nullcontext()
        parent = self._parent_of(parents) if parents else None
        return self._tracer.start_as_current_span(route, parent, self._trace.SpanKind.SERVER, {"http.route": route})

    def stage(self, name: str, start_ns: int, end_ns: int) -> None:
        """Record a stage of the current request, with its start and end by `perf_counter_ns`."""
        if self._trace.get_current_span().is_recording():
            span = self._tracer.start_span(name, start_time=self._wall_ns + start_ns)
            span.end(self._wall_ns + end_ns)

    def answered(self, status: int, request_id: str) -> None:
        """Record the status of the answer to the current request."""
        span = self._trace.get_current_span()
        if span.is_recording():
            span.set_attribute("http.response.status_code", status)
            span.set_attribute("http.request.header.x-request-id", request_id)
            if status >= 500:
                span.set_status(self._trace.StatusCode.ERROR)

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()


def make_tracer(config: TracingConfig | None = None) -> RequestTracer | None:
    """Return a tracer as configured, None when tracing is off. Each process makes its own after its start."""
    config, setting = config or TracingConfig(), os.environ.get
    endpoint = config.endpoint or setting("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or setting("OTEL_EXPORTER_OTLP_ENDPOINT")
    is_off = setting("OTEL_SDK_DISABLED", "").lower() == "true" or setting("OTEL_TRACES_EXPORTER") == "none"
    return RequestTracer(config) if endpoint and not is_off else None
