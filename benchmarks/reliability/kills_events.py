"""Kills of a device with -9 while it stores and uploads feedback, and a count of what the cloud then has of it.

Devices live one after the other on one store (`benchmarks.reliability.kills_device`). Each is killed a random time after a
random event of its life, or after its start; its marks show what the kill interrupted. Every other device has an uploader at
work, and sometimes the server (`benchmarks.reliability.log_server`) is killed first. After some lives all waiting events are
sent, and a new store is begun. At the end the log is read: it must have every event that a device accepted, once.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.processes import OrderedProcess
from benchmarks.reliability.kills_device import MARKS, Life
from benchmarks.reliability.log_server import LogServer
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.device.contract import FeedbackEvent

__all__ = ["KillConfig", "kill_devices", "twice"]


@dataclass(frozen=True)
class KillConfig:
    """When to kill."""

    events_max: int = 60
    """Largest number of events in a device's life before it is killed."""
    delay_max_s: float = 4e-3
    """Longest wait after that event: longer than an event, a request or the opening of a store takes."""
    lives: int = 20
    """Devices that live on one store."""
    server_share: float = 0.1
    """Share of the devices with an uploader whose server is killed first."""
    known_max: int = 20
    """Number of the latest events that the next device offers a second time."""


@dataclass
class _Life:
    """Record of a device's life."""

    taken: list[str] = field(default_factory=list)
    during: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    empty: bool = False


class _Devices(OrderedProcess):
    """Process that forks devices."""

    def __init__(self, marks: Path) -> None:
        self._marks = marks
        marks.write_bytes(bytes(len(MARKS)))
        super().__init__("benchmarks.reliability.kills_device")

    def live(self, life: Life, events: int | None = None, kill: Callable[[], None] = lambda: None) -> _Life:
        """Run one device; after `events` events call `kill`, then kill the device. None leaves it to its own end."""
        self.send(life)
        lived, pid, killed = _Life(), 0, False
        with self._marks.open("r+b") as file, mmap.mmap(file.fileno(), len(MARKS)) as marks:
            marks[:] = bytes(len(MARKS))
            while True:
                what, _, value = self.read_line().partition(" ")
                match what:
                    case "pid":
                        pid = int(value)
                    case "+":
                        lived.taken.append(value)
                    case "again" | "damaged" | "resent":
                        lived.counts[what] += int(value)
                    case "empty":
                        lived.empty = True
                    case "end":
                        if int(value) != (expected := -signal.SIGKILL if killed else 0):
                            raise BenchmarkError("a device", f"an end by {expected}", f"one by {value}")
                        lived.during = [name for name, on in zip(MARKS, marks[:], strict=True) if on]
                        return lived
                if events is not None and not killed and len(lived.taken) >= events:
                    kill()
                    os.kill(pid, signal.SIGKILL)
                    killed = True


def twice(applied: Iterable[FeedbackEvent]) -> int:
    """Count events whose impression a cloud had applied before, under the same event id or under another one."""
    return sum(times - 1 for times in Counter((event.session_id, event.position) for event in applied).values())


def kill_devices(
    work: Path, kills: int, seed: int, progress: Callable[[float], None], config: KillConfig | None = None
) -> dict[str, Any]:
    """Kill `kills` devices, with files in the folder `work`, and return the figures of the report. Raises `BenchmarkError`."""
    config, rng = config or KillConfig(), random.Random(seed)
    server, devices = LogServer(work / "log.db"), _Devices(work / "marks")
    taken: list[str] = []
    begun = 0  # how many events earlier stores accepted
    counts, during = Counter[str](), Counter[str]()

    def life(number: int, name: str, *, uploads: bool = False, empties: bool = False) -> Life:
        store, marks, known = work / f"store-{number // config.lives}.db", work / "marks", taken[begun:][-config.known_max :]
        return Life(str(store), str(marks), server.url, name, uploads, empties, tuple(known))

    def wait(kills_server: bool) -> None:
        if kills_server:
            server.kill()
        until = time.perf_counter() + rng.uniform(0, config.delay_max_s)
        while time.perf_counter() < until:  # because a sleep would be longer than `delay_max_s`
            pass

    try:
        for number in range(kills):
            server.start()
            uploads = number % 2 == 1
            kills_server = uploads and rng.random() < config.server_share
            events = 0 if number % 4 == 0 else rng.randint(1, config.events_max)
            lived = devices.live(life(number, f"life-{number}", uploads=uploads), events, partial(wait, kills_server))
            taken += lived.taken
            counts["writing_and_uploading" if uploads else "writing"] += 1
            counts["servers"] += kills_server
            during.update(lived.during or ["nothing"])
            counts.update(lived.counts)
            if number == kills - 1 or (number + 1) % config.lives == 0:
                server.start()
                done = devices.live(life(number, f"last-{number}", empties=True))
                counts.update(done.counts)
                counts["not_emptied"] += not done.empty
                begun = len(taken)
            progress((number + 1) / kills)
    finally:
        server.kill()
        devices.close()
    log = SqliteFeedbackLog(work / "log.db")
    applied = list(log.replay())
    log.close()
    return {
        "kills": kills,
        "events_taken": len(taken),
        "events_lost": len(set(taken) - {event.event_id for event in applied}),
        "events_twice": twice(applied),
        "events_resent": counts["resent"],
        "repeats_taken": counts["again"],
        "damaged": counts["damaged"],
        "not_emptied": counts["not_emptied"],
        "killed": {name: counts[name] for name in ("writing", "writing_and_uploading", "servers")},
        "during": {name: during[name] for name in (*MARKS, "nothing")},
    }
