import asyncio
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.serving.routes.health import Health, HealthConfig, health_router
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.device.codec import read_page, to_msgpack
from pocketrank.device.contract import FeedbackBatch, Page
from tests.cloud.events import event
from tests.cloud.serving.live import MSGPACK, Live, live, piped, request, until
from tests.cloud.small_published import small_run


def client(health: Health) -> TestClient:
    app = FastAPI()
    app.include_router(health_router(health))
    return TestClient(app)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_process_is_alive_before_it_is_ready_and_while_it_drains() -> None:
    health = Health()
    http = client(health)
    states = []
    for step in (lambda: None, health.loaded, health.draining):
        step()
        ready = http.get("/readyz")
        states.append((http.get("/livez").status_code, ready.status_code, ready.json()["status"]))
    assert states == [(200, 503, "not_ready"), (200, 200, "ready"), (200, 503, "draining")]
    assert ready.headers["cache-control"] == "no-store"


def test_a_log_that_cannot_be_written_makes_it_unready_and_a_store_that_is_gone_degraded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log, clock = SqliteFeedbackLog(tmp_path / "feedback.db"), Clock()
    store = tmp_path / "store"
    store.touch()
    health = Health(HealthConfig(cache_s=5.0, timeout_s=30.0), clock)
    health.add("feedback_log", log.check, required=True)
    health.add("store", store.read_bytes, required=False)
    health.loaded()
    http = client(health)
    assert http.get("/readyz").json() == {"status": "ready", "checks": {"feedback_log": "ok", "store": "ok"}}
    store.unlink()
    assert http.get("/readyz").json()["status"] == "ready"  # known from before
    clock.now += 5.0
    with caplog.at_level(logging.INFO):
        answer = http.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        200, {"status": "degraded", "checks": {"feedback_log": "ok", "store": "failed"}},
    )  # fmt: skip
    assert "check store failed" in caplog.text
    assert str(tmp_path) not in answer.text
    log.close()
    clock.now += 5.0
    answer = http.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "not_ready")


def test_a_check_that_hangs_has_failed_and_is_not_piled_up() -> None:
    clock, go_on, calls = Clock(), Event(), []

    def hangs() -> None:
        calls.append(1)
        assert go_on.wait(60)

    health = Health(HealthConfig(cache_s=1.0, timeout_s=0.05), clock)
    health.add("slow", hangs, required=True)
    health.loaded()

    async def probes() -> list[str]:
        states = []
        for _ in range(3):
            states.append((await health.ready()).status)
            clock.now += 1.0
        calls_before = len(calls)
        go_on.set()
        while (status := (await health.ready()).status) != "ready":
            clock.now += 1.0
            await asyncio.sleep(0)
        return [*states, str(calls_before), status]

    assert asyncio.run(probes()) == ["not_ready"] * 3 + ["1", "ready"]


def test_probes_at_once_share_a_check() -> None:
    calls: list[int] = []
    health = Health(HealthConfig(timeout_s=30.0))
    health.add("counted", lambda: calls.append(1), required=True)
    health.loaded()

    async def probes() -> set[str]:
        return {readiness.status for readiness in await asyncio.gather(*(health.ready() for _ in range(8)))}

    assert asyncio.run(probes()) == {"ready"}
    assert len(calls) == 1


def ready(server: Live) -> tuple[int, str, list[str]]:
    """Status of `/readyz`, its word, and the checks that failed."""
    answer = server.send("GET", "/readyz")
    return answer.status, answer.json()["status"], [name for name, state in answer.json()["checks"].items() if state != "ok"]


_AT_ONCE = HealthConfig(cache_s=0, timeout_s=30)


def test_a_damaged_record_and_a_wrong_line_of_removed_items_degrade_a_server_that_serves_on(tmp_path: Path) -> None:
    run, db = small_run(tmp_path / "run").folder, tmp_path / "feedback.db"
    with closing(SqliteFeedbackLog(db)) as log:
        log.append([event(2, 1003), event(2, 1006), event(2, 1009)])
    with closing(sqlite3.connect(db, isolation_level=None)) as by_hand:
        by_hand.execute("UPDATE event SET body = x'c1' WHERE place = 2")
    removed = tmp_path / "pipeline" / "removed.txt"
    config = piped(removed.parent, "[filters]\nremoved = 'removed.txt'", health=_AT_ONCE)
    removed.write_text("")
    with live(run, db, config=config, stderr=tmp_path / "stderr.txt") as server:
        assert ready(server) == (200, "degraded", ["feedback_records"])
        assert server.send("GET", "/healthz").json()["feedback_replayed"] == 2
        assert server.metric('pocketrank_unreadable{source="feedback_log"}') == 1
        shown = read_page(server.ask("/v1/page", request(2, 60), Page)).item_id.tolist()
        assert not {1003, 1009} & set(shown)
        removed.write_text(f"\ufeff{shown[0]}\r\n# a note\r\nnonsense\r\n{shown[1]}")
        until(lambda: ready(server) == (200, "degraded", ["feedback_records", "removed"]), "a look at the file, without a page")
        until(lambda: server.metric('pocketrank_unreadable{source="removed"}') == 1, "its metric")
        assert not set(shown[:2]) & set(read_page(server.ask("/v1/page", request(2, 60), Page)).item_id.tolist())
    told = (tmp_path / "stderr.txt").read_text()
    assert told.count("record 2 of the feedback log") == told.count("got 1 other lines, line 3: `nonsense`") - 1 == 1


@pytest.mark.parametrize("how", ["the table", "the write-ahead file", "the file"])
def test_a_server_whose_log_is_gone_is_not_ready_and_acknowledges_nothing(tmp_path: Path, how: str) -> None:
    run, db = small_run(tmp_path / "run").folder, tmp_path / "feedback.db"
    with live(run, db, config=ServingConfig(health=_AT_ONCE)) as server:
        assert ready(server) == (200, "ready", [])
        if how == "the table":
            with closing(sqlite3.connect(db, isolation_level=None)) as by_hand:
                by_hand.execute("DROP TABLE event")
        elif how == "the file":
            db.rename(tmp_path / "elsewhere.db")
        else:
            Path(f"{db}-wal").unlink()
        assert ready(server) == (503, "not_ready", ["feedback_log"])
        answer = server.send("POST", "/v1/feedback", to_msgpack(FeedbackBatch(events=(event(2),))), MSGPACK)
        assert answer.status == 503
        assert str(tmp_path) not in answer.body.decode()
        assert len(server.ask("/v1/page", request(2), Page).candidates.item_id.data) > 0, "pages go on"
