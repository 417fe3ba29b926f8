import asyncio
import logging
from pathlib import Path
from threading import Event

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from pocketrank.cloud.serving.routes.health import Health, HealthConfig, health_router
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog


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
