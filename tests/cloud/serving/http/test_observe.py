"""How requests to any route are observed: `HotRoutes` around a small application, called over ASGI as a server would."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketrank.cloud.serving.access.access import Access
from pocketrank.cloud.serving.http.body import BodyReader
from pocketrank.cloud.serving.http.hot import HotRoutes
from pocketrank.cloud.serving.telemetry.logs import LoggingConfig, configure_logs, current_request
from pocketrank.cloud.serving.telemetry.metrics import ServingMetrics
from pocketrank.cloud.serving.telemetry.tracing import RequestTracer, TracingConfig, make_tracer
from tests.cloud.serving.collector import collecting
from tests.cloud.serving.telemetry.test_metrics import samples

_ROUTES = {"/v1/page": "/v1/page"}


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """200, and what the query string says otherwise."""
    what = scope["query_string"].decode()
    if what == "raise":
        raise RuntimeError("broken")
    request = current_request.get()
    assert request is not None
    if what == "503":
        request.error = "TimeoutError"
    await asyncio.sleep(0)
    await send({"type": "http.response.start", "status": int(what or 200), "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": request.id.encode()})


def observe(app: ASGIApp, metrics: ServingMetrics | None = None, tracer: RequestTracer | None = None) -> HotRoutes:
    read, metrics = BodyReader(0, 1.0), metrics or ServingMetrics()
    return HotRoutes(app, {}, metrics, _ROUTES, access=Access(), read=read, tracer=tracer)


def ask(observed: HotRoutes, query: str = "", path: str = "/v1/page", **headers: str) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": path, "query_string": query.encode(), "headers": raw,
    }  # fmt: skip
    asyncio.run(observed(scope, receive, send))
    return sent


def test_the_id_goes_through_and_comes_back() -> None:
    observed = observe(app)
    start, body = ask(observed, x_request_id="mine-1")
    assert dict(start["headers"]) == {b"content-length": b"0", b"x-request-id": b"mine-1"}
    assert body["body"] == b"mine-1"
    ids = {dict(ask(observed)[0]["headers"])[b"x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert current_request.get() is None


def test_each_request_is_counted_and_errors_have_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(LoggingConfig(format="json"))
    metrics = ServingMetrics()
    observed = observe(app, metrics)
    ask(observed)
    ask(observed, "503", x_request_id="slow")
    ask(observed, "404", path="/nowhere")
    with pytest.raises(RuntimeError, match="broken"):
        ask(observed, "raise")
    counts = samples(metrics.text()[0].decode())
    counted = {name: value for name, value in counts.items() if name.startswith("requests_total")}
    assert counted == {
        "requests_total POST /v1/page 200": 1,
        "requests_total POST /v1/page 503": 1,
        "requests_total POST other 404": 1,
        "requests_total POST /v1/page 500": 1,
    }
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["status"], line.get("error")) for line in lines] == [
        (503, "TimeoutError"), (404, None), (500, "RuntimeError"),
    ]  # fmt: skip
    assert lines[0]["request_id"] == "slow"


def test_a_trace_has_the_status() -> None:
    with collecting() as collector:
        tracer = make_tracer(TracingConfig(endpoint=collector.url, share=1.0))
        assert tracer is not None
        observed = observe(app, tracer=tracer)
        ask(observed, "503", x_request_id="mine")
        ask(observed, path="/nowhere")
        tracer.close()
    assert sorted(span.name for span in collector.spans) == ["/v1/page", "other"]
    (page,) = collector.named("/v1/page")
    attributes = {one.key: one.value for one in page.attributes}
    assert attributes["http.response.status_code"].int_value == 503
    assert attributes["http.request.header.x-request-id"].string_value == "mine"


def test_the_lifespan_passes_through() -> None:
    seen: list[str] = []

    async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*_: object) -> Any:
        return {}

    asyncio.run(observe(lifespan)({"type": "lifespan"}, nothing, nothing))
    assert seen == ["lifespan"]
