import subprocess
import sys
from time import perf_counter_ns
from typing import Any

import pytest

from pocketrank.cloud.serving.telemetry.tracing import RequestTracer, TracingConfig, make_tracer
from tests.cloud.serving.collector import collecting

_TRACE, _SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_SAMPLED = [(b"host", b"x"), (b"traceparent", f"00-{_TRACE}-{_SPAN}-01".encode())]
_NOT_SAMPLED = [(b"traceparent", f"00-{_TRACE}-{_SPAN}-00".encode())]


@pytest.fixture(autouse=True)
def _clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name in ("SERVICE_NAME", "RESOURCE_ATTRIBUTES", "TRACES_SAMPLER", "SDK_DISABLED", "TRACES_EXPORTER"):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)


def traced_by(**config: Any) -> RequestTracer:
    tracer = make_tracer(TracingConfig(**config))
    assert tracer is not None
    return tracer


def one_page(tracer: RequestTracer, headers: list[tuple[bytes, bytes]], status: int = 200) -> None:
    with tracer.trace_page(headers):
        start = perf_counter_ns()
        tracer.stage("retrieve", start, start + 2_000_000)
        tracer.stage("my.own", start + 2_000_000, start + 5_000_000)
        tracer.answered(status, "r-1")


def test_a_page_is_a_span_under_the_callers_with_a_child_for_each_stage() -> None:
    with collecting() as collector:
        tracer = traced_by(endpoint=collector.url, share=1.0)
        one_page(tracer, _SAMPLED)
        tracer.close()
    (page,) = collector.named("/v1/page")
    (retrieve,) = collector.named("retrieve")
    (own,) = collector.named("my.own")
    assert (page.trace_id.hex(), page.parent_span_id.hex()) == (_TRACE, _SPAN)
    assert {span.trace_id for span in (retrieve, own)} == {page.trace_id}
    assert {span.parent_span_id for span in (retrieve, own)} == {page.span_id}
    assert retrieve.end_time_unix_nano - retrieve.start_time_unix_nano == 2_000_000
    assert own.start_time_unix_nano == retrieve.end_time_unix_nano
    attributes = {one.key: one.value for one in page.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["http.request.header.x-request-id"].string_value == "r-1"
    assert page.start_time_unix_nano <= retrieve.start_time_unix_nano
    assert collector.resource["service.name"] == "pocketrank"


def test_without_a_parent_a_trace_begins_and_a_failure_is_marked() -> None:
    with collecting() as collector:
        tracer = traced_by(endpoint=collector.url, share=1.0)
        one_page(tracer, [(b"traceparent", b"nonsense\xff")], status=503)
        with pytest.raises(KeyError), tracer.trace_page([]):
            raise KeyError("x")
        tracer.close()
    answered, raised = collector.named("/v1/page")
    assert answered.parent_span_id == raised.parent_span_id == b""
    assert answered.trace_id != raised.trace_id
    assert answered.status.code == raised.status.code == 2


@pytest.mark.parametrize(
    ("share", "trust", "headers", "traced"),
    [
        (1.0, False, _NOT_SAMPLED, 0),
        (0.0, False, _SAMPLED, 0),  # a device cannot have itself traced
        (0.0, True, _SAMPLED, 1),
        (0.0, True, [], 0),
    ],
)
def test_which_requests_are_traced(share: float, trust: bool, headers: list[tuple[bytes, bytes]], traced: int) -> None:
    with collecting() as collector:
        tracer = traced_by(endpoint=collector.url, share=share, trust_parent=trust)
        one_page(tracer, headers)
        tracer.close()
    assert len(collector.named("/v1/page")) == traced
    assert len(collector.spans) == 3 * traced


def test_the_environment_alone_configures_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.removesuffix("/v1/traces"))
        monkeypatch.setenv("OTEL_SERVICE_NAME", "pages")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
        tracer = traced_by()
        one_page(tracer, [])
        tracer.close()
        assert len(collector.spans) == 3
        assert collector.resource["service.name"] == "pages"
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        assert make_tracer() is None


def test_an_unreachable_collector_stops_no_page() -> None:
    tracer = traced_by(endpoint="http://127.0.0.1:9/v1/traces", share=1.0, timeout_s=0.2)
    one_page(tracer, [])
    tracer.close()


def test_without_configuration_there_is_no_tracer_and_nothing_is_imported() -> None:
    assert make_tracer() is None
    code = (
        "import sys, pocketrank.cloud.serving.telemetry.tracing as t; t.make_tracer();"
        "print(any('opentelemetry' in m for m in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "False\n"


@pytest.mark.parametrize("wrong", [{"share": -0.1}, {"share": 2.0}, {"timeout_s": 0.0}])
def test_an_invalid_config_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected a share"):
        TracingConfig(**wrong)  # type: ignore[arg-type]
