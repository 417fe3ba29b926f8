"""Kills of the server with -9 under feedback load, and a check of its log and of its users' states.

Servers live one after the other on one log; each is killed at a random moment, some while they still start. In some lives two
workers serve, and one of them is killed while the other goes on. Devices (`benchmarks.reliability.cloud_devices`)
resend what was not acknowledged. After some lives the log is read and a new one is begun: every acknowledged event must be in
it, once; the server that replays it must count each once; and what a server knew of a user whose batch was sent again must be
what one batch makes.

The run is a tiny one, so that a start is short; the server, its log and its syncs of the disk are those of `pocketrank serve`.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import msgspec
import numpy as np

from benchmarks.processes import wait_until
from benchmarks.reliability.cloud_devices import Devices, Effect
from benchmarks.reliability.cloud_server import CloudServer, ServeOrder, kill_and_wait
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from tests.cloud.small_published import SmallRun, small_run

__all__ = ["CloudKillConfig", "kept", "kill_servers", "read_log", "wrong_effect"]

TOLERANCE = 0.02
"""Tolerance of a user's vector, which is sent as fp16 and is some units long; one event changes it by tenths or more."""


@dataclass(frozen=True)
class CloudKillConfig:
    """When to kill."""

    lives: int = 25
    """Servers that live on one log."""
    serving_max_s: float = 0.3
    """Longest time from ready to the kill; a batch takes some milliseconds."""
    starting_share: float = 0.1
    """Share of the lives that end while the server starts."""
    workers_every: int = 12
    """In one of so many lives two workers serve."""
    worker_kills: int = 3
    """Kills of single workers in such a life; their supervisor gives up after five deaths of one in a row."""
    worker_s: float = 60.0
    """Longest wait for a killed worker to be replaced."""


def kill_servers(
    work: Path, kills: int, seed: int, progress: Callable[[float], None], config: CloudKillConfig | None = None
) -> dict[str, Any]:
    """Kill `kills` servers and workers, with files in the folder `work`, and return the report. Raises `BenchmarkError`."""
    config, rng = config or CloudKillConfig(), random.Random(seed)
    run = small_run(work / "run")
    counts, killed = Counter[str](), Counter[str]()
    with CloudServer(work / "server.log", ahead=True) as server:
        for era in itertools.count():
            killer = _Killer(server, run, work / f"log-{era}.db", rng, config, killed)
            done = killed.total()
            counts.update(killer.era(min(config.lives, kills - done), kills, lambda: progress(killed.total() / kills)))
            if killed.total() >= kills:
                break
    return {
        "kills": killed.total(),
        **counts,
        "killed": {name: killed[name] for name in ("serving", "starting", "workers")},
    }


class _Killer:
    """Lives of servers on one log."""

    def __init__(
        self, server: CloudServer, run: SmallRun, log: Path, rng: random.Random, config: CloudKillConfig, killed: Counter[str]
    ) -> None:
        self._server, self._run, self._log = server, run, log
        self._rng, self._config, self._killed = rng, config, killed
        self._order = ServeOrder(run=str(run.folder), log=str(log))
        self._start_s = 0.5

    def era(self, lives: int, kills: int, progress: Callable[[], None]) -> Counter[str]:
        """Run and kill servers until there were `kills` in all or `lives` have ended; then check what is left."""
        server, config, devices = self._server, self._config, None
        for _ in range(lives):
            if self._killed.total() >= kills:
                break
            life = self._killed.total()
            if devices is not None and self._rng.random() < config.starting_share:
                server.begin(self._order)
                sleep(self._rng.uniform(0, self._start_s))
                server.kill()
                self._killed["starting"] += 1
            elif life % config.workers_every == config.workers_every - 1:
                server.start(msgspec.structs.replace(self._order, workers=2))
                devices = devices or self._devices()
                for _ in range(min(config.worker_kills, kills - life - 1)):
                    self._kill_worker()
                self._kill_serving()
            else:
                started = monotonic()
                server.start(self._order)
                self._start_s = monotonic() - started
                devices = devices or self._devices()
                self._kill_serving()
            progress()
        server.start(self._order)
        assert devices is not None  # the first life of an era begins with them
        devices.finish()
        server.kill()  # the last kill: what was acknowledged just before must be kept too
        return self._check(devices)

    def _devices(self) -> Devices:
        ids = np.asarray(self._run.published.item_id)[1:]
        seed = self._rng.randrange(1 << 30)
        return Devices(self._server.port, ids, self._run.record.split_version, seed)

    def _kill_serving(self) -> None:
        sleep(self._rng.uniform(0, self._config.serving_max_s))
        self._server.kill()
        self._killed["serving"] += 1

    def _kill_worker(self) -> None:
        before = self._server.workers
        sleep(self._rng.uniform(0, self._config.serving_max_s))
        kill_and_wait([self._rng.choice(before)])
        self._killed["workers"] += 1
        wait_until(lambda: len(self._server.workers) >= len(before), self._config.worker_s, "a killed worker", "another")

    def _check(self, devices: Devices) -> Counter[str]:
        logged = read_log(self._log)
        self._server.start(self._order)
        health = httpx.get(f"http://127.0.0.1:{self._server.port}/healthz", timeout=30.0, trust_env=False)
        replayed = int(health.json()["feedback_replayed"])
        self._server.kill()
        found = Counter(events_replayed_wrongly=abs(replayed - len(logged)))
        found.update(kept(self._run, devices, logged))
        found["events_twice"] += found["events_replayed_wrongly"]
        found["unexpected_5xx"] = sum(n for name, n in devices.counts.items() if name.startswith("status_5"))
        found["unexpected_5xx"] += found["malformed"]
        return found


def read_log(file: Path) -> Counter[str]:
    """Count each event id in a log."""
    log = SqliteFeedbackLog(file)
    try:
        return Counter(event.event_id for event in log.replay())
    finally:
        log.close()


def kept(run: SmallRun, devices: Devices, logged: Counter[str]) -> dict[str, int]:
    """Compare acknowledged events with the log, and the effects of resent batches with what one batch makes."""
    acknowledged = set(devices.acknowledged)
    twice = logged.total() - len(logged)
    wrong = sum(wrong_effect(run, effect) for effect in devices.effects)
    return {
        "events_acknowledged": len(acknowledged),
        "events_lost": len(acknowledged - set(logged)),
        "events_twice": twice + wrong,
        "events_in_log_twice": twice,
        "effects_seen": len(devices.effects),
        "effects_wrong": wrong,
        **{name: devices.counts[name] for name in ("batches", "resent", "broken", "malformed")},
    }


def wrong_effect(run: SmallRun, effect: Effect) -> bool:
    """Return whether the user's vector differs from the one that a single use of the batch makes."""
    states = UserStates(run.published, run.record)
    states.apply(effect.events)
    expected = run.expected_vector(0, states(effect.events[0].user_id).history)
    return not np.allclose(expected, effect.vector.astype(np.float32), atol=TOLERANCE)
