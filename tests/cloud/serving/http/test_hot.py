"""The two hot routes over HTTP: what they reject before it has an effect, and what they return."""

import gzip
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import msgspec
import pytest

from pocketrank.cloud.serving.access.limits import LimitsConfig, RateLimit
from pocketrank.cloud.serving.access.tokens import issue_token
from pocketrank.cloud.streams.sqlite import SqliteLogConfig
from pocketrank.device.codec import from_msgpack, to_json, to_msgpack
from pocketrank.device.contract import FeedbackBatch, FeedbackReceipt, Page
from tests.cloud.events import event
from tests.cloud.serving.live import JSON, MSGPACK, Answer, Live, live, piped, request, until
from tests.cloud.small_published import small_run

_WAITS = """
import time
from pathlib import Path
from pocketrank.cloud.pipeline.stage import Stage

class Waits(Stage):
    def __call__(self, query, candidates):
        file = Path(query.request.session_id)
        if file.is_absolute():
            file.with_suffix(".begun").touch()
            until = time.monotonic() + 30
            while not file.exists() and time.monotonic() < until:
                time.sleep(0.005)
        return candidates
"""
_PIPELINE = """
[limits]
page_ms = 60_000.0
queue_ms = 0.001
[[stage]]
use = "waits.Waits"
[[stage]]
use = "retrieve"
"""

_BOMB = 128 << 20


class Site:
    """A server at which nobody waits in line, with a token for each test that needs one of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokens = folder, folder / "tokens.json"
        self.device, self.admin = self._issue("device"), self._issue("admin")
        self.slow = self._issue("device", RateLimit(0.001, 2))
        self.limited = self._issue("device", RateLimit(0.001, 18))
        self.server: Live

    def _issue(self, scope: str, rate: RateLimit | None = None) -> dict[str, str]:
        now_ms = time.time_ns() // 1_000_000
        token = issue_token(self.tokens, [scope], now_ms=now_ms, lasts_ms=3_600_000, rate=rate).token  # type: ignore[list-item]
        return {"Authorization": f"Bearer {token}"}

    def page(self, body: bytes, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.server.send("POST", "/v1/page", body, {**self.device, **MSGPACK, **named})

    def metric(self, sample: str) -> float:
        return self.server.metric(sample, self.admin)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("hot")
    made = Site(folder)
    (folder / "waits.py").write_text(_WAITS)
    limits = LimitsConfig(device=None, admin=None)
    config = piped(folder, _PIPELINE, tokens=made.tokens, limits=limits, feedback_waiting=2, log=SqliteLogConfig(busy_s=60.0))
    with live(small_run(folder / "run").folder, folder / "feedback.db", config=config) as made.server:
        yield made


def test_a_compressed_body_is_taken(site: Site) -> None:
    body = to_msgpack(request(request_id="packed"))
    for packed, encoding in ((gzip.compress(body), "gzip"), (zlib.compress(body), "deflate"), (body, "identity")):
        answer = site.page(packed, Content_Encoding=encoding)
        assert (answer.status, from_msgpack(answer.body, Page).request_id) == (200, "packed")


def test_a_bomb_is_refused_and_never_unpacked(site: Site) -> None:
    status = Path(f"/proc/{site.server.process.pid}/status")

    def peak_kb() -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])

    assert site.page(gzip.compress(os.urandom(2 << 20), 1), Content_Encoding="gzip").status == 413  # by its own length
    bomb, before = gzip.compress(bytes(_BOMB)), peak_kb()
    assert len(bomb) < 1 << 20
    answer = site.page(bomb, Content_Encoding="gzip")
    assert (answer.status, answer.json()["path"]) == (413, "$")
    assert peak_kb() - before < (_BOMB >> 10) / 2
    assert site.page(b"\x1f\x8b" + b"x" * 50, Content_Encoding="gzip").status == 400
    assert site.page(gzip.compress(to_msgpack(request()))[:-4], Content_Encoding="gzip").status == 400


def test_a_request_id_comes_back_and_without_one_there_is_a_new_one(site: Site) -> None:
    for status, body in ((200, to_msgpack(request())), (400, b"")):
        answer = site.page(body, X_Request_Id="mine-1")
        assert (answer.status, answer.headers["x-request-id"]) == (status, "mine-1")
    refused = site.server.send("POST", "/v1/page", headers={"X-Request-Id": "mine-2"})
    assert (refused.status, refused.headers["x-request-id"]) == (401, "mine-2")
    made = {site.page(to_msgpack(request()), X_Request_Id=wrong).headers["x-request-id"] for wrong in ("", "a b", "x" * 65)}
    assert len(made) == 3
    assert not made & {"", "a b", "x" * 65}


def test_who_would_wait_too_long_is_sent_away_and_counted(site: Site) -> None:
    go, before = site.folder / "go", site.metric('pocketrank_shed_total{reason="queue"}')
    body = to_msgpack(request(feedback=(event(1, 1000),)))
    connections = [HTTPConnection("127.0.0.1", site.server.port, timeout=30) for _ in range(6)]
    for connection in connections:  # so that the server has accepted it
        connection.request("GET", "/livez")
        connection.getresponse().read()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(site.page, to_msgpack(request(session_id=str(go))))
        until(go.with_suffix(".begun").exists, "the first page's turn")
        # They come while the first is made: one of them is the next, and there is no line behind it. Nobody gets past that
        # because feedback is written first.
        for connection in connections:
            connection.request("POST", "/v1/page", body, {**site.device, **MSGPACK})
        go.touch()
        assert first.result().status == 200
        answers = [connection.getresponse() for connection in connections]
    refused = [answer for answer in answers if answer.status == 429]
    assert len(refused) + sum(answer.status == 200 for answer in answers) == len(answers)
    assert 0 < len(refused) < len(answers)
    for answer in refused:
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert b"room in the queue" in answer.read()
    for connection in connections:
        connection.close()
    assert site.metric('pocketrank_shed_total{reason="queue"}') - before == len(refused)


def test_a_token_that_is_used_too_often_is_told_when_to_come_again(site: Site) -> None:
    headers = {**site.slow, **JSON}
    answers = [site.server.send("POST", "/v1/page", to_json(request()), headers) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 429, 429]
    assert 900 <= int(answers[-1].headers["retry-after"]) <= 1000
    body = to_msgpack(FeedbackBatch(events=(event(1, 1000),)))
    assert site.server.send("POST", "/v1/feedback", body, {**site.slow, **MSGPACK}).status == 429
    other = site.server.send("POST", "/v1/feedback", body, {**site.device, **MSGPACK})
    assert from_msgpack(other.body, FeedbackReceipt).accepted == 1  # what was refused had no effect


def test_feedback_counts_towards_the_rate_and_stops_no_page(site: Site) -> None:
    headers = {**site.limited, **MSGPACK}

    def page(count: int) -> tuple[str, ...]:
        body = to_msgpack(request(feedback=tuple(event(1, 1000) for _ in range(count))))
        answer = site.server.send("POST", "/v1/page", body, headers)
        assert answer.status == 200, answer.body
        return from_msgpack(answer.body, Page).degraded

    assert page(80) == ()
    before = site.metric('pocketrank_shed_total{reason="rate"}')
    assert page(160) == ("no_feedback",)  # enough is left for a page, and not for 160 events
    assert site.metric('pocketrank_shed_total{reason="rate"}') - before == 1
    batch = to_msgpack(FeedbackBatch(events=tuple(event(1, 1000) for _ in range(160))))
    assert site.server.send("POST", "/v1/feedback", batch, headers).status == 429
    assert page(16) == ()


def test_a_list_without_end_is_refused_before_it_is_read(site: Site) -> None:
    """Half a million numbers, or empty lists of telemetry, in less than a kilobyte."""
    plain, count = msgspec.to_builtins(request()), 1 << 19
    exclude = gzip.compress(msgspec.msgpack.encode({**plain, "exclude": [0] * count}))
    answer = site.page(exclude, Content_Encoding="gzip")
    assert (answer.status, answer.json()["path"]) == (400, "$.exclude")
    telemetry = gzip.compress(msgspec.msgpack.encode({**plain, "telemetry": [[]] * count}))
    bad = 'pocketrank_device_reports_total{bundle="",result="bad",sample_rate="",tier=""}'
    before = site.metric(bad)
    assert site.page(telemetry, Content_Encoding="gzip").status == 200
    assert site.metric(bad) - before == 1


def test_feedback_that_a_slow_disk_cannot_take_is_refused_before_it_fills_the_memory(site: Site) -> None:
    headers, before = {**site.device, **MSGPACK}, site.metric('pocketrank_shed_total{reason="feedback"}')
    batches = [FeedbackBatch(events=(event(1, 1003 + 3 * i),)) for i in range(4)]
    held = sqlite3.connect(site.folder / "feedback.db", isolation_level=None, check_same_thread=False)
    held.execute("BEGIN IMMEDIATE")  # as a disk that takes its time
    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(site.server.send, "POST", "/v1/feedback", to_msgpack(batch), headers) for batch in batches]
        until(lambda: sum(answer.done() for answer in sent) >= 2, "two to be refused")
        assert all(answer.result().status == 429 for answer in sent if answer.done())
        held.execute("ROLLBACK")
        answers = [answer.result() for answer in sent]
    held.close()
    assert sorted(answer.status for answer in answers) == [200, 200, 429, 429]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status == 429)
    assert site.metric('pocketrank_shed_total{reason="feedback"}') - before == 2
    for batch, answer in zip(batches, answers, strict=True):
        receipt = from_msgpack(site.server.send("POST", "/v1/feedback", to_msgpack(batch), headers).body, FeedbackReceipt)
        assert receipt.duplicates == (answer.status == 200), "what was refused had no effect"
