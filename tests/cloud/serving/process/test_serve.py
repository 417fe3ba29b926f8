"""A server that is stopped."""

import signal
import socket
from pathlib import Path

import pytest

from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.serving.process.server import ServerConfig
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import FeedbackBatch, FeedbackReceipt, Page
from tests.cloud.events import event
from tests.cloud.serving.live import Live, live, request, until
from tests.cloud.small_published import small_run

_EACH = 6


def _begun(server: Live, path: str, body: bytes) -> socket.socket:
    """Send the head of a request, and return the connection once the server waits for the body."""
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAccept: application/msgpack\r\nContent-Length: {len(body)}"
    raw.sendall(f"{head}\r\nExpect: 100-continue\r\n\r\n".encode())
    assert raw.recv(64) == b"HTTP/1.1 100 Continue\r\n\r\n"
    return raw


def _refuses(server: Live) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=30).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize(
    ("workers", "sign"), [(1, signal.SIGTERM), (1, signal.SIGHUP), (2, signal.SIGTERM), (2, signal.SIGHUP)]
)
def test_requests_under_way_at_the_stop_are_answered(tmp_path: Path, workers: int, sign: signal.Signals) -> None:
    if signal.getsignal(sign) == signal.SIG_IGN:
        pytest.skip("the tests were started by nohup, whose children ignore a hangup")
    db, events = tmp_path / "feedback.db", [event(1, 1000 + 3 * n) for n in range(_EACH)]
    config = ServingConfig(workers=workers)
    with live(small_run(tmp_path / "run").folder, db, config=config) as server:
        bodies = [("/v1/feedback", to_msgpack(FeedbackBatch(events=(one,)))) for one in events]
        bodies += [("/v1/page", to_msgpack(request(n, request_id=str(n)))) for n in range(_EACH)]
        begun = [_begun(server, *body) for body in bodies]
        server.process.send_signal(sign)
        until(lambda: _refuses(server), "an end of new connections")
        assert server.process.poll() is None
        answers = []
        for raw, (_, body) in zip(begun, bodies, strict=True):
            with raw:
                raw.sendall(body)
                answers.append(raw.makefile("rb").read().partition(b"\r\n\r\n"))
        assert server.process.wait(30) == 0
    assert all(head.startswith(b"HTTP/1.1 200 OK\r\n") for head, _, _ in answers)
    assert [from_msgpack(body, FeedbackReceipt).accepted for _, _, body in answers[:_EACH]] == [1] * _EACH
    assert [from_msgpack(body, Page).request_id for _, _, body in answers[_EACH:]] == [str(n) for n in range(_EACH)]
    log = SqliteFeedbackLog(db)
    assert {one.event_id for one in log.replay()} == {one.event_id for one in events}
    log.close()


def test_a_draining_server_is_not_ready_and_still_serves(tmp_path: Path) -> None:
    config = ServingConfig(server=ServerConfig(drain_s=600.0))
    with live(small_run(tmp_path / "run").folder, tmp_path / "feedback.db", config=config) as server:
        assert server.send("GET", "/readyz").status == 200
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.send("GET", "/readyz").status == 503, "the end of readiness")
        assert server.send("GET", "/readyz").json() == {"status": "draining", "checks": {}}
        assert server.send("GET", "/livez").status == 200
        assert server.ask("/v1/page", request(request_id="late"), Page).request_id == "late"
