"""The parts of the benchmark: each starts its servers, measures them in turn and ends them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.serving.host import Host, hosted, on_core
from benchmarks.serving.model import CANDIDATES, Model, ModelTimer
from benchmarks.serving.page_requests import EVENTS, SIZE, PageRequests
from benchmarks.serving.published import WorldSize, publish_world
from benchmarks.serving.rounds import MEDIANS, Bench, ServerSubject
from benchmarks.serving.subjects import PATHS
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.training.run import Run

__all__ = ["PEERS", "measure_growth", "measure_http", "measure_page", "measure_peers"]

PEERS = ("fastapi_plain", "fastapi_msgpack", "mosec", "litserve")
"""The page behind servers of others."""
_TAKE_JSON = ("fastapi_plain", "litserve")
_SPARE = 1.5
"""So many times the requests of the last round are made for one whose requests are sent once."""
_FIRST = 500
"""Requests made for a first round, a second."""

Progress = Callable[[float], None]


def measure_page(bench: Bench, run: Run, progress: Progress) -> dict[str, Any]:
    """`page`, `model_ms` and `ratio_to_model`, and those of the model as it is served."""
    timer, served = (ModelTimer(Model(run.published, whole=whole)) for whole in (True, False))
    with ExitStack() as stack:
        asking, host = _asking(run), _host(bench, stack, "ours", run)
        page = _subject(bench, asking, host)
        with_feedback = replace(page, once=True, requests=_once(bench, asking, page), rounds=[])

        def time_model(seconds: float) -> None:
            with on_core(bench.cores.server):
                timer.round(seconds / 2)
                served.round(seconds / 2)

        bench.measure({"page": page, "with_feedback": with_feedback}, progress, time_model)
    feedback = with_feedback.report()
    feedback |= {"events": EVENTS, "ratio_to_model": feedback["cpu_ms"] / timer.ms - 1}
    return {
        "page": {**page.report(), "candidates": CANDIDATES, "returned": SIZE, "with_feedback": feedback},
        "model_ms": timer.ms,
        "model_p50_ms": timer.p50_ms,
        "ratio_to_model": page.report()["cpu_ms"] / timer.ms - 1,
        "model_served_ms": served.ms,
        "ratio_to_model_served": page.report()["cpu_ms"] / served.ms - 1,
    }


def measure_peers(bench: Bench, run: Run, progress: Progress) -> dict[str, Any]:
    """`peers`, `peers_ours` in the same rounds, and the ratios to the best of them."""
    with ExitStack() as stack:
        asking = _asking(run)
        subjects = {name: _subject(bench, asking, _host(bench, stack, name, run)) for name in ("ours", *PEERS)}
        bench.measure(subjects, progress)
    reports = {name: subject.report() for name, subject in subjects.items()}
    ours = reports.pop("ours")
    best = max(reports, key=lambda name: reports[name]["rps"])
    least = min(report["cpu_ms"] for report in reports.values())
    return {
        "peers": reports,
        "peers_ours": ours,
        "peers_best": best,
        "peers_ratio": ours["rps"] / reports[best]["rps"],
        "peers_cpu_ratio": least / ours["cpu_ms"],
    }


def measure_http(bench: Bench, run: Run, progress: Progress) -> dict[str, Any]:
    """`http`: a page made beforehand, behind our stack and behind none."""
    names = {"ours": "http_ours", "raw_asgi": "http_raw"}
    with ExitStack() as stack:
        asking = _asking(run)
        subjects = {
            key: replace(_subject(bench, asking, _host(bench, stack, name, run)), connections=bench.extent.http_connections)
            for key, name in names.items()
        }
        bench.measure(subjects, progress)
    ours, raw = (subject.report() for subject in subjects.values())
    figures = {"ours_rps": ours["rps"], "raw_asgi_rps": raw["rps"], "ratio": ours["rps"] / raw["rps"]}
    of_cpu = {"cpu_ratio": raw["cpu_ms"] / ours["cpu_ms"]}
    return {"http": {**figures, **of_cpu, "ours": ours, "raw_asgi": raw}}


def measure_growth(bench: Bench, small: Run, size: WorldSize, progress: Progress) -> dict[str, Any]:
    """`growth`: the same load on catalogues of all sizes."""
    items = bench.extent.sizes
    with ExitStack() as stack:
        subjects = {}
        for i, count in enumerate(items):
            run = publish_world(bench.work / f"growth-{count}", replace(size, items=count), small)
            subjects[str(count)] = _subject(bench, _asking(run), _host(bench, stack, "ours", run, f"ours_{count}"))
            progress(0.3 * (i + 1) / len(items))
        bench.measure(subjects, lambda share: progress(0.3 + 0.7 * share))
        memory = [subject.host.memory_bytes() for subject in subjects.values()]
    reports = [subject.report() for subject in subjects.values()]
    p99 = [report["p99_ms"] for report in reports]
    return {
        "growth": {
            "items": list(items),
            **{name: [report[name] for report in reports] for name in MEDIANS},
            "p99_ratio": p99[-1] / p99[0],
            "memory_bytes": memory,
            "bytes_per_item": (memory[-1] - memory[0]) / (items[-1] - items[0]),
        }
    }


def _asking(run: Run) -> PageRequests:
    return PageRequests(*Published.open(run.published))


def _host(bench: Bench, stack: ExitStack, name: str, run: Run, called: str | None = None) -> Host:
    probe = _requests(name, _asking(run), 1)[0]
    arguments = (name, str(Path(run.folder).resolve()))
    return stack.enter_context(hosted(name, called or name, arguments, bench.cores.server, probe, bench.work))


def _subject(bench: Bench, asking: PageRequests, host: Host) -> ServerSubject:
    requests = bench.fixed(_requests(host.name, asking, bench.extent.requests))
    return ServerSubject(host=host, requests=requests, connections=bench.extent.connections)


def _requests(name: str, asking: PageRequests, count: int) -> list[bytes]:
    return (asking.json if name in _TAKE_JSON else asking.msgpack)(count, PATHS[name])


def _once(bench: Bench, asking: PageRequests, like: ServerSubject) -> Callable[[], str]:
    """Requests with feedback for one round, as many as will do when they are answered as fast as those of `like`; a round ends
    early when they do not.
    """

    def requests() -> str:
        rps = like.rounds[-1]["rps"] if like.rounds else _FIRST
        count = round(rps * bench.extent.seconds * _SPARE) + 10 * bench.extent.connections
        return bench.load.file(asking.msgpack(count, feedback=True))

    return requests
