"""A server whose vectors are in a Valkey that is killed with -9 and restarts empty, under a steady load of pages.

An open loop requests the pages. No answer may fail. While the store is unavailable, pages have no vectors and report that as
degraded; some time after its restart they have vectors again, because the server refills it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np

from benchmarks.reliability.cloud_server import CloudServer, ServeOrder
from benchmarks.reliability.open_loop import OpenLoad, OpenPhase, OpenResult
from benchmarks.serving.page_requests import PageRequests
from benchmarks.serving.published import WorldSize, publish_world
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.training.run import Run
from tests.valkey import valkey_server

__all__ = ["StoreKillConfig", "kill_store"]


@dataclass(frozen=True)
class StoreKillConfig:
    """When the store is killed, and how long it is unavailable."""

    items: int = 100_000
    """Items whose vectors are in the store, 64 wide."""
    rps: float = 100.0
    """Page requests a second."""
    kills: int = 3
    """Kills of the store, one after the other."""
    before_s: float = 4.0
    """Seconds before each kill."""
    away_s: float = 5.0
    """Seconds between a kill and the restart."""
    back_s: float = 12.0
    """Seconds after a restart: longer than refilling takes."""
    requests: int = 4_000
    """Different requests; they are sent again when they run out."""


def kill_store(
    work: Path, seed: int, progress: Callable[[float], None], config: StoreKillConfig | None = None, run: Run | None = None
) -> dict[str, Any]:
    """Kill the store under a server over `run`, or over one that is drawn, and return the report. Raises `BenchmarkError`."""
    config = config or StoreKillConfig()
    run = run or publish_world(work / "run", WorldSize(config.items))
    asking = PageRequests(*Published.open(run.published), seed)
    requests = asking.requests(config.requests, feedback=False)
    kills, backs = list[float](), list[float]()
    total = config.kills * (config.before_s + config.away_s + config.back_s)
    with valkey_server() as valkey, CloudServer(work / "store.log") as server:
        order = ServeOrder(run=str(run.folder), log=str(work / "store.db"), store=valkey.url)
        server.start(order)
        with OpenLoad(work) as load:
            load.begin(server.port, requests, (OpenPhase(config.rps, total),), seed=seed)
            began = monotonic()
            for number in range(config.kills):
                sleep(config.before_s)
                kills.append(monotonic() - began)
                valkey.kill()
                sleep(config.away_s)
                valkey.restart()
                backs.append(monotonic() - began)
                progress((number + 0.5) / config.kills)
                sleep(config.back_s)
            result = load.wait()
        server.stop()
    return _report(result, kills, backs)


def _report(result: OpenResult, kills: list[float], backs: list[float]) -> dict[str, Any]:
    down = np.zeros(len(result.at), np.bool_)
    after, vectors = down.copy(), list[float | None]()
    for killed, back, end in zip(kills, backs, [*kills[1:], np.inf], strict=True):
        down |= result.between(killed, back)
        vectors.append(_vectors_s(result, back, end))
        after |= result.between(back + (vectors[-1] or 0.0), end)
    found = result.unexpected()
    return {
        "kills": len(kills),
        "unexpected_5xx": found["unexpected_5xx"],
        "unexpected": found,
        "first_error": result.first_error,
        "vectors_s": None if None in vectors else max(v for v in vectors if v is not None),
        "vectors_s_each": vectors,
        "answers": result.answers(np.ones(len(result.at), np.bool_)),
        "before": result.pages(result.between(0, kills[0])),
        "away": result.pages(down),
        "after": result.pages(after),
    }


def _vectors_s(result: OpenResult, back: float, end: float) -> float | None:
    """Return the seconds from `back` to the request of the first page with vectors; None when there was none."""
    at = result.at[result.between(back, end) & (result.vectors == 1)]
    return float(at[0] - back) if len(at) else None
