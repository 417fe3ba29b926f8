"""Starts of the server on a long feedback log, with and without a snapshot of users' states, and what writing one costs pages.

The run is a tiny one, so that ready time and memory beyond those on an empty log are the log's. The server is `pocketrank
serve`. The stall is measured in this process: how long the two steps of a page that need the states take while a snapshot is
written.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import monotonic, perf_counter, sleep
from typing import Any

import httpx
import numpy as np

from benchmarks.reliability.cloud_server import CloudServer, ServeOrder
from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.pages.state_snapshot import StateSnapshot
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
from pocketrank.device.contract import FeedbackEvent
from tests.cloud.small_published import SmallRun, small_run

__all__ = ["StartConfig", "start_servers"]

_BATCH = 5000


@dataclass(frozen=True)
class StartConfig:
    """Size of the log."""

    events: int = 2_000_000
    """Events in the log."""
    per_user: int = 20
    """Events of a user, on average."""
    after: int = 10_000
    """Events that the log accepts after the snapshot."""
    items: int = 2_000
    """Items of the run."""
    page_s: float = 0.002
    """Pause in seconds between two of the pages whose stall is measured."""


def start_servers(
    work: Path, seed: int, progress: Callable[[float], None], config: StartConfig | None = None
) -> dict[str, Any]:
    """Return the figures, with files in the folder `work`. Raises `BenchmarkError`."""
    config, rng = config or StartConfig(), random.Random(seed)
    run, path = small_run(work / "run", items=config.items), work / "feedback.db"
    order = ServeOrder(run=str(run.folder), log=str(path))
    with CloudServer(work / "server.log", ahead=True) as server:
        figures = dict[str, Any]()
        for _ in range(2):  # the first one imports and fills the store
            figures["empty"] = _start(server, order)
            server.stop()
        with closing(SqliteFeedbackLog(path, SqliteLogConfig(full_sync=False, keep_days=None))) as log:
            for batch, count in _batches(run, config, rng):
                log.append(batch)
                progress(0.5 * count / config.events)
        figures["replay"] = _start(server, order)
        began = monotonic()
        server.stop()
        figures["stop_s"] = monotonic() - began
        progress(0.8)
        with closing(SqliteFeedbackLog(path, SqliteLogConfig(full_sync=False, keep_days=None))) as log:
            log.append([_event(run, config, rng, config.events + n) for n in range(config.after)])
            figures["snapshot_bytes"] = log.derived.stat().st_size
        figures["snapshot"] = _start(server, order)
        server.kill()
        progress(0.9)
    for start in ("replay", "snapshot"):
        cpu_s = figures[start]["ready_cpu_s"] - figures["empty"]["ready_cpu_s"]
        figures[start]["per_event_cpu_us"] = 1e6 * cpu_s / config.events
        memory = figures[start]["memory_bytes"] - figures["empty"]["memory_bytes"]
        figures[start]["per_event_bytes"] = memory / config.events
    return {"events": config.events, **figures, "stall": _stall(run, path, config, rng)}


def _start(server: CloudServer, order: ServeOrder) -> dict[str, float]:
    began = monotonic()
    server.start(order)
    ready_s, cpu_s = monotonic() - began, server.cpu_s()
    health = httpx.get(f"http://127.0.0.1:{server.port}/healthz", timeout=30.0, trust_env=False).json()
    memory, events = server.memory_bytes(), health["feedback_replayed"]
    return {"ready_s": ready_s, "ready_cpu_s": cpu_s, "memory_bytes": memory, "events": events}


def _batches(run: SmallRun, config: StartConfig, rng: random.Random) -> Iterator[tuple[list[FeedbackEvent], int]]:
    for first in range(0, config.events, _BATCH):
        count = min(_BATCH, config.events - first)
        yield [_event(run, config, rng, first + n) for n in range(count)], first + count


def _event(run: SmallRun, config: StartConfig, rng: random.Random, number: int) -> FeedbackEvent:
    return FeedbackEvent(
        event_id=f"{number:032x}",
        user_id=10**9 + rng.randrange(max(1, config.events // config.per_user)),
        session_id=f"session-{number // 10}",
        item_id=1000 + 3 * rng.randrange(config.items),
        position=number % 10,
        impression_ms=1_700_000_000_000 + 10 * number + rng.randrange(60_000),  # devices send minutes later
        watch_ms=rng.randrange(30_000),
        like=rng.random() < 0.05,
    )


def _stall(run: SmallRun, path: Path, config: StartConfig, rng: random.Random) -> dict[str, Any]:
    """Time the states' part of pages, before a snapshot is written and while it is."""
    states = UserStates(run.published, run.record)
    with closing(SqliteFeedbackLog(path, SqliteLogConfig(full_sync=False, keep_days=None))) as log:
        intake = FeedbackIntake(log, states, snapshot=StateSnapshot(log.derived))
        intake.together([[_event(run, config, rng, config.events + config.after)]])
        quiet = _pages(states, intake, config, rng, 400)
        saving = Thread(target=intake.save)
        began = monotonic()
        saving.start()
        busy = list[float]()
        while saving.is_alive():
            busy += _pages(states, intake, config, rng, 20)
        seconds = monotonic() - began
    figures = {"saving_s": seconds}
    for name, times in (("quiet", quiet), ("saving", busy)):
        p50, p99, most = np.percentile(np.array(times) * 1e3, (50, 99, 100)).tolist()
        figures |= {f"{name}_p50_ms": p50, f"{name}_p99_ms": p99, f"{name}_max_ms": most}
    return figures


def _pages(states: UserStates, intake: FeedbackIntake, config: StartConfig, rng: random.Random, count: int) -> list[float]:
    times = list[float]()
    for _ in range(count):
        sleep(config.page_s)
        began = perf_counter()
        intake.follow()
        states(10**9 + rng.randrange(max(1, config.events // config.per_user)))
        times.append(perf_counter() - began)
    return times
