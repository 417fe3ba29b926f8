"""What HTTP costs: one page made beforehand, behind the product's own stack and behind the smallest ASGI application."""

from __future__ import annotations

from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.serving.by_hand import ByHand
from pocketrank.cloud.serving.http.wire import MSGPACK
from pocketrank.cloud.serving.process.server import listen, run_server
from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import PageRequest

__all__ = ["serve_constant"]


def serve_constant(run: Path, port: int, *, ours: bool) -> None:
    """Serve the page of one user to everybody."""
    pages = ByHand(run / "published")
    request = PageRequest(
        request_id="r", user_id=0, session_id="s", now_ms=0, size=30, split_version=pages.record.split_version
    )
    page = pages.page(request)
    if ours:
        from benchmarks.serving.stack import page_app  # the whole product, which a bare server has no use for

        app = page_app(lambda _: page)
    else:
        app = _raw(to_msgpack(page))
    with listen("127.0.0.1", port) as sock:
        run_server(app, sock)


def _raw(body: bytes) -> ASGIApp:
    """Return an application that reads a request whole and answers the same bytes to every one."""
    headers = [(b"content-type", MSGPACK.encode()), (b"content-length", str(len(body)).encode())]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    rest = {"type": "http.response.body", "body": body}

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        while (await receive()).get("more_body"):
            pass
        await send(start)
        await send(rest)

    return answer
