"""The loop from a swipe to a changed page, with its processes killed by -9 at random moments while users go on.

::

    loop.kills                     by process
    loop.events                    events that the server acknowledged, and pages that it answered
    loop.events_lost               acknowledged events that the feedback log does not have
    loop.samples_lost              acknowledged events on a page that was kept, without a sample
    loop.samples_twice             samples of the same page, item and revision beyond the first
    loop.mixed_versions            increments whose numbers are missing or repeated
    loop.parameters_differ         rows that are not bit for bit those of a trainer that learns the samples without a pause
    loop.rollbacks                 of the guard
    loop.recovery_s.{p50,max}      from a kill until the process has done something again
"""

from __future__ import annotations

import http.client
import multiprocessing
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.command import figure_table
from benchmarks.errors import BenchmarkError
from benchmarks.freshness.caller import Caller
from benchmarks.freshness.load import events_of
from benchmarks.freshness.world import USERS, small_run
from benchmarks.reliability.parts import cell
from pocketrank.cloud.streams.messages import Sample
from pocketrank.cloud.streams.parameters import check_part
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.cloud.training.run import Run
from pocketrank.device.codec import from_msgpack
from pocketrank.sdk_demo.cli.output import progress

__all__ = ["KILLS", "measure_loop"]

KILLS = 1000
"""Default number of kills."""
_RECOVERED_S = 60.0
_DRAIN_S = 60.0
_PROCESSES = ("server", "join", "train")

Progress = Callable[[float], None]


def measure_loop(kills: int, seed: int, console: Console) -> dict[str, Any]:
    """Kill so many processes; return the figures, and show them. Raises `BenchmarkError` when one does not come back."""
    with TemporaryDirectory(prefix="pocketrank-loop-") as name, progress(console, "kills in the loop") as update:
        run = small_run(Path(name) / "run", seed)
        found = _Loop(run, random.Random(seed)).measure(kills, update)
    table = figure_table("The loop (simulated users)", "")
    for figure, value in found.items():
        shown = ", ".join(f"{key} {cell(one)}" for key, one in value.items()) if isinstance(value, dict) else cell(value)
        table.add_row(figure.replace("_", " "), shown)
    console.print(table)
    return {"simulated": True, "loop": found}


class _Loop:
    """Server, join and trainer of a run, and its users."""

    def __init__(self, run: Run, rng: random.Random) -> None:
        self._run, self._rng = run, rng
        self._db = run.folder / "feedback.db"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["benchmarks.reliability.loop_process"])
        self._processes: dict[str, ForkServerProcess] = {}
        self._port = 0
        self._stop = Event()
        self.acknowledged: dict[str, tuple[str, int]] = {}
        """Page and item by the ids of events that were acknowledged."""
        self.pages = 0
        self._kept = set[str]()

    def measure(self, kills: int, update: Progress) -> dict[str, Any]:
        """Kill so many of them; return the figures."""
        found, recovery = Counter[str](), list[float]()
        with closing(_free_port()) as sock:
            self._port = sock.getsockname()[1]
        for process in _PROCESSES:
            self._start(process)
        users = Thread(target=self._use, daemon=True)
        users.start()
        try:
            with closing(SqliteFeedbackLog(self._db)) as feedback, closing(SqliteEventLog(feedback.events, feedback)) as log:
                self._wait(lambda: log.ends("parameters") and self.pages > 20, "a first increment")
                for number in range(kills):
                    sleep(self._rng.uniform(0.0, 0.4))
                    process = self._rng.choice(_PROCESSES)
                    began = monotonic()
                    os.kill(self._processes[process].pid or 0, signal.SIGKILL)
                    self._processes[process].join()
                    self._start(process)
                    before = self._done(process, log)
                    self._wait(lambda: self._done(process, log) > before, f"{process} at work again")  # noqa: B023
                    recovery.append(monotonic() - began)
                    found[process] += 1
                    update((number + 1) / kills)
                self._stop.set()
                users.join()
                self._drain(log)
                for running in self._processes.values():
                    running.terminate()
                    running.join(30)
                return {"kills": dict(found)} | self._check(feedback, log) | {"recovery_s": _summary(recovery)}
        finally:
            self._stop.set()
            for running in self._processes.values():
                running.kill()
                running.join()

    def _start(self, process: str) -> None:
        made = self._context.Process(
            target=_run_process, args=(process, str(self._run.folder), str(self._db), self._port), daemon=True
        )
        made.start()
        self._processes[process] = made

    def _done(self, process: str, log: SqliteEventLog) -> int:
        """Return a number that grows with what a process does."""
        if process == "server":
            return self.pages
        return log.ends("samples" if process == "join" else "parameters").get(0, 0)

    def _wait(self, done: Callable[[], object], what: str) -> None:
        until = monotonic() + _RECOVERED_S
        while not done():
            if monotonic() > until:
                raise BenchmarkError("the loop", f"{what} within {_RECOVERED_S:g} s", "none")
            sleep(0.005)

    def _use(self) -> None:
        """Use the server as its users do, again and again where it does not answer."""
        number, waiting = 0, list[Any]()
        caller: Caller | None = None
        while not self._stop.is_set() or waiting:
            try:
                caller = caller or Caller(self._port)
                if not waiting:
                    number += 1
                    user = 1 + min(int(self._rng.expovariate(3 / USERS)), USERS - 1)
                    page = caller.page(user, 20, session_id=f"s{number}")
                    self.pages += 1
                    if "page_not_kept" not in page.degraded:
                        self._kept.add(page.page_id)
                    waiting = list(events_of(self._rng, page, user, f"s{number}"))
                caller.feedback(tuple(waiting))
                self.acknowledged |= {event.event_id: (event.page_id or "", event.item_id) for event in waiting}
                waiting = []
                sleep(0.01)
            except (OSError, http.client.HTTPException, BenchmarkError):
                if caller is not None:
                    caller.close()
                caller = None
                sleep(0.02)

    def _drain(self, log: SqliteEventLog) -> None:
        """Wait until nothing comes any more."""
        until, last, since = monotonic() + _DRAIN_S, -1, monotonic()
        while monotonic() < until and monotonic() - since < 4.0:
            now = log.ends("samples").get(0, 0) + log.ends("parameters").get(0, 0)
            if now != last:
                last, since = now, monotonic()
            sleep(0.05)

    def _check(self, feedback: SqliteFeedbackLog, log: SqliteEventLog) -> dict[str, Any]:
        kept = {event.event_id for event in feedback.replay()}
        samples, after = Counter[tuple[str, int, int]](), dict[int, int]()
        while (part := log.read("samples", after)).records:
            for record in part.records:
                sample = from_msgpack(record.value, Sample)
                samples[sample.page_id, sample.item_id, sample.revision] += 1
            after = dict(part.offsets)
        joined = {(page, item) for page, item, _ in samples}
        of_kept_page = [where for where in self.acknowledged.values() if where[0] in self._kept]
        numbers, after = list[int](), {}
        while (part := log.read("parameters", after)).records:
            read = [check_part(record.value) for record in part.records]
            numbers += [one.sequence for one in read if one.kind == "increment"]
            after = dict(part.offsets)
        differ, rollbacks = self._relearned(log)
        return {
            "events": {"acknowledged": len(self.acknowledged), "pages": self.pages},
            "events_lost": len(self.acknowledged.keys() - kept),
            "samples": sum(samples.values()),
            "samples_lost": sum(where not in joined for where in of_kept_page),
            "samples_twice": sum(count - 1 for count in samples.values()),
            "increments": len(numbers),
            "mixed_versions": sum(a != b for a, b in zip(numbers, range(1, len(numbers) + 1), strict=True)),
            "parameters_differ": differ,
            "rollbacks": rollbacks,
        }

    def _relearned(self, log: SqliteEventLog) -> tuple[int, int]:
        """Learn all samples anew; return the number of rows that differ from those of the trainer that was killed, and of
        roll-backs."""
        from pocketrank.cloud.published.published import published_digest
        from pocketrank.cloud.training.learner import Learner
        from pocketrank.cloud.training.learning_base import open_base

        published = self._run.published
        state = Path(f"{self._db}-events-learned-{published_digest(published)[:8]}")
        with closing(Learner(log, open_base(published), state)) as killed:
            while killed.step():
                pass
            rows = {**killed.training.items.copy()}, {**killed.training.users.copy()}
        with closing(Learner(log, open_base(published), self._run.folder / "anew")) as anew:
            while anew.step():
                pass
            again, rollbacks = (anew.training.items.copy(), anew.training.users.copy()), anew.counts.rollbacks
        differ = sum(a.get(id) != b.get(id) for a, b in zip(rows, again, strict=True) for id in {*a, *b})
        return differ, rollbacks


def _free_port() -> Any:
    import socket

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def _run_process(process: str, run: str, db: str, port: int) -> None:
    from benchmarks.reliability.loop_process import run_process

    run_process(process, Path(run), Path(db), port)


def _summary(seconds: list[float]) -> dict[str, float]:
    return {"p50": float(np.quantile(seconds, 0.5)), "p99": float(np.quantile(seconds, 0.99)), "max": max(seconds)}
