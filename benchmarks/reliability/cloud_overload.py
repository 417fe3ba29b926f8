"""Twice as many requests as the server can answer, for minutes: its answers, its memory, and how soon it recovers.

The capacity is measured first, in a closed loop. Then an open loop (`benchmarks.reliability.open_loop`) sends a calm rate, the
overload and the calm rate again, from another process and, where there are two cores, on another one. A share of the requests
carries feedback, so that the log and the users' states grow as they do in use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.http_connection import http_request
from benchmarks.reliability.cloud_server import CloudServer, ServeOrder
from benchmarks.reliability.open_loop import OpenLoad, OpenPhase, OpenResult
from benchmarks.serving.host import Cores, on_core
from benchmarks.serving.load import Load, LoadOrder
from benchmarks.serving.page_requests import PageRequests
from benchmarks.serving.published import WorldSize, publish_world
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.training.run import Run
from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import PageRequest

__all__ = ["OverloadConfig", "overload", "recovery"]


@dataclass(frozen=True)
class OverloadConfig:
    """Load, and how long it lasts."""

    seconds: float = 600.0
    """Seconds of overload."""
    times: float = 2.0
    """Factor of the overload: arrivals by the capacity."""
    items: int = 100_000
    """Items in the catalogue."""
    users: int = 2_000
    """Users, each of whom asks again and again: all have states and cached rankings after the warm-up."""
    feedback_share: float = 0.2
    """Share of the requests that have feedback, ten events each."""
    capacity_s: float = 4.0
    """Seconds of one measurement of the capacity."""
    capacity_rounds: int = 3
    """Measurements of the capacity; the best one counts."""
    capacity_connections: int = 4
    """Requests under way in them: the server never waits for one, and no page waits long enough to be degraded."""
    calm_share: float = 0.3
    """Arrivals before and after the overload, by the capacity."""
    calm_s: float = 15.0
    """Seconds of calm before the overload."""
    after_s: float = 20.0
    """Seconds of calm after it; a server that recovers later counts as not recovered."""
    window_s: float = 1.0
    """Seconds in which all pages must be whole and in time for the server to have recovered."""
    recovered: float = 1.5
    """Largest p99 of those pages, by the p99 before the overload."""
    warm_up_share: float = 0.2
    """Share of the overload before the growth of memory counts."""
    samples: int = 100
    """Samples of memory in the overload."""
    series: int = 20
    """Parts of the overload that are reported one by one."""
    requests: int = 20_000
    """Different requests; they are sent again when they run out."""


def overload(
    work: Path, seed: int, progress: Callable[[float], None], config: OverloadConfig | None = None, run: Run | None = None
) -> dict[str, Any]:
    """Overload a server over `run`, or over one that is drawn, and return the report. Raises `BenchmarkError`."""
    config, where = config or OverloadConfig(), Cores()
    run = run or publish_world(work / "run", WorldSize(config.items, users=config.users))
    requests = _requests(run, config, seed)
    order = ServeOrder(run=str(run.folder), log=str(work / "overload.db"), core=where.server)
    with on_core(where.load), CloudServer(work / "overload.log") as server:
        server.start(order)
        capacity = _capacity(server, requests, config, where.load, work)
        phases = (
            OpenPhase(config.calm_share * capacity, config.calm_s),
            OpenPhase(config.times * capacity, config.seconds),
            OpenPhase(config.calm_share * capacity, config.after_s),
        )
        with OpenLoad(work, where.load) as load:
            load.begin(server.port, requests, phases, seed=seed)
            memory = _watch(server, config, progress)
            result = load.wait()
        server.stop()
    return {"capacity_rps": capacity, "offered_rps": config.times * capacity} | _report(result, memory, config)


def _requests(run: Run, config: OverloadConfig, seed: int) -> list[PageRequest]:
    asking, rng = PageRequests(*Published.open(run.published), seed), np.random.default_rng(seed)
    plain, fed = (asking.requests(config.requests, feedback=feedback) for feedback in (False, True))
    return [
        f if with_feedback else p
        for p, f, with_feedback in zip(plain, fed, rng.random(config.requests) < config.feedback_share, strict=True)
    ]


def _capacity(server: CloudServer, requests: list[PageRequest], config: OverloadConfig, core: int, work: Path) -> float:
    """Return the pages per CPU second of the server: its rate where nobody else takes time from its core.

    Pages per second of the clock would be fewer on a busy machine, and twice that rate would not be an overload. Raises
    `BenchmarkError` when there are answers other than pages.
    """
    best, share = 0.0, len(requests) // config.capacity_rounds
    with Load(core, work) as load:
        for number in range(config.capacity_rounds):
            mine = requests[number * share : (number + 1) * share]  # no event is sent twice
            sent = [http_request("/v1/page", to_msgpack(request), "application/msgpack") for request in mine]
            order = LoadOrder(
                port=server.port,
                requests=load.file(sent),
                connections=config.capacity_connections,
                seconds=config.capacity_s,
                in_order=True,
            )
            spent = server.cpu_s()
            result = load(order)
            spent = server.cpu_s() - spent
            if result.errors:
                got = f"{result.errors} other answers: {result.first_error}"
                raise BenchmarkError("the capacity", "pages alone", got)
            best = max(best, result.answers / min(spent, result.seconds))
    return best


def _watch(server: CloudServer, config: OverloadConfig, progress: Callable[[float], None]) -> list[tuple[float, int]]:
    """Sample memory until the last phase is over; return bytes by seconds since the start."""
    began, total = monotonic(), config.calm_s + config.seconds + config.after_s
    found: list[tuple[float, int]] = []
    while (now := monotonic() - began) < total:
        found.append((now, server.memory_bytes()))
        progress(now / total)
        sleep(config.seconds / config.samples)
    return found


def _report(result: OpenResult, memory: list[tuple[float, int]], config: OverloadConfig) -> dict[str, Any]:
    start, end = config.calm_s, config.calm_s + config.seconds
    before, under = result.between(0, start), result.between(start, end)
    of_pages, found = result.pages(under), result.unexpected()
    calm = result.pages(before)
    edges = np.linspace(start, end, config.series + 1)
    series = [
        {"from_s": since - start, **result.pages(result.between(since, until)), "memory": _mean(memory, since, until)}
        for since, until in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    warm = start + config.warm_up_share * config.seconds
    tenth = (end - warm) / 10
    first, last = _mean(memory, warm, warm + tenth), _mean(memory, end - tenth, end)
    return {
        "unexpected_5xx": found["unexpected_5xx"],
        "memory_growth": 100 * (last / first - 1),
        "recovery_s": recovery(result, end, config.recovered * calm["p99_ms"], config.window_s),
        "seconds": config.seconds,
        "unexpected": found,
        "first_error": result.first_error,
        "answers": result.answers(under),
        "goodput_rps": of_pages["pages"] / config.seconds,
        "whole_rps": float((result.whole & under).sum()) / config.seconds,
        "before": calm,
        "overload": of_pages,
        "after": result.pages(result.between(end, np.inf)),
        "price_most": float(np.nanmax(result.price[under])),
        "memory": {"warm": first, "end": last},
        "load_busy": result.busy,
        "late_p99_ms": result.late_p99_ms,
        "series": series,
    }


def _mean(memory: list[tuple[float, int]], since: float, until: float) -> float:
    inside = [size for at, size in memory if since <= at < until]
    return float(np.mean(inside)) if inside else float("nan")


def recovery(result: OpenResult, end: float, max_ms: float, window_s: float) -> float | None:
    """Return the seconds after `end` from which pages were whole with a p99 up to `max_ms`, for `window_s`; None: never."""
    after = result.between(end, np.inf)
    at, ms, whole = result.at[after], result.ms[after], result.whole[after]
    for place, since in enumerate(at):
        to = int(np.searchsorted(at, since + window_s))
        if to == len(at):
            return None
        if whole[place:to].all() and np.percentile(ms[place:to], 99) <= max_ms:
            return float(since - end)
    return None
