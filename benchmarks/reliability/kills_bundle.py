"""Kills of a device with -9 at random moments of its updates. After each, exactly one valid bundle must be active.

The device is forked from a process that has imported everything, so that a kill costs no start of Python. It asks a server, in
a process of its own, that releases the next bundle at every other request and sends files in small pieces. Some bundles fail
in use, and the device then returns to the previous one.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.processes import OrderedProcess
from benchmarks.reliability.released import KEYS, NOW_MS, make_bundle, make_files, release_of, serve, signed_release, use
from pocketrank.device.bundle.files import MANIFEST, RELEASE, BundleError
from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import ClientError
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.updates import BundleStore, TrialConfig, UpdateConfig, Updates

__all__ = ["kill_switches", "main"]

LIFE = 3.0
"""Longest life of a device, in whole updates as long as the first one took on this machine."""
PAUSE_S = 0.0003
"""Seconds between two pieces of a file, so that a kill can happen within a file."""
RUNS = 5
"""Model runs after which a trial is over."""
FAILS_EVERY = 3
"""One bundle of so many fails in use."""
STEPS = ("start", "check", "activate", "use", "judge")
"""Steps of a device that a kill may interrupt."""

Progress = Callable[[float], None]


def kill_switches(work: Path, kills: int, seed: int, progress: Progress) -> dict[str, Any]:
    """Kill `kills` devices and return the report: `kills`, `invalid_bundles_active`, the number of kills in each step (`at`),
    what they left on the disk (`left`), and how many bundles were `activated` and `rejected`.

    `work` is an empty folder.
    """
    rng, at, seen = random.Random(seed), Counter[str](), Counter[str]()
    invalid, root = 0, work / "device"
    updates = _updates(root)
    updates.add(make_bundle(work / "first", 1))
    first = updates.current().ranker
    assert first is not None
    use(first, RUNS)
    updates.current()  # the first bundle has passed its trial
    updates.store.close()
    floor, activated, rejected = 0, set[int](), set[int]()
    step = mmap.mmap(-1, 1)
    with OrderedProcess("benchmarks.reliability.kills_bundle") as server:
        url = server.read_line()
        with CloudClient(url) as client:
            started = time.perf_counter()
            _updates(root).check(client)
            longest = LIFE * (time.perf_counter() - started)
        for i in range(kills):
            step[0] = 0
            child = os.fork()
            if child == 0:
                _device(root, url, step)
            time.sleep(rng.uniform(0, longest))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            at[STEPS[step[0]]] += 1
            # The next start would find this state.
            store = BundleStore(root, KEYS, clock=lambda: NOW_MS)
            store.close()  # it is only read, and the next device opens it
            state = store.state
            seen.update(name for name in ("pending", "staged") if getattr(state, name) is not None)
            activated.add(state.active or 0)
            rejected.update(state.rejected)
            followed = 0 if state.release is None else state.release.serial
            invalid += not _valid(store) or followed < floor or state.active in state.rejected
            floor = followed
            progress((i + 1) / kills)
    return {
        "kills": kills,
        "invalid_bundles_active": invalid,
        "at": dict(at),
        "left": dict(seen),
        "activated": len(activated),
        "rejected": len(rejected),
    }


def _updates(root: Path) -> Updates:
    config = UpdateConfig(trial=TrialConfig(runs=RUNS, failures=RUNS))
    return Updates(BundleStore(root, KEYS, clock=lambda: NOW_MS), device_id="device", config=config)


def _valid(store: BundleStore) -> bool:
    """Return whether one bundle is active, signed and whole, and its model opens."""
    serial = store.state.active
    if serial is None:
        return False
    try:
        return bool(Ranker.open(store.open(serial)).runtimes)
    except BundleError:
        return False


def _device(root: Path, url: str, step: mmap.mmap) -> NoReturn:
    """Update, use and judge bundles until killed."""
    updates, client = _updates(root), CloudClient(url)
    while True:
        step[0] = STEPS.index("check")
        with suppress(ClientError, BundleError):
            updates.check(client)
        step[0] = STEPS.index("activate")
        current = updates.current()
        step[0] = STEPS.index("use")
        if current.ranker is not None and current.serial is not None:
            use(current.ranker, RUNS, fails=current.serial % FAILS_EVERY == 0)
        step[0] = STEPS.index("judge")
        updates.current()


def main() -> None:
    """Serve bundle after bundle until killed: the same files under rising serials. Print the URL."""
    asked = 0

    def before(path: str) -> None:
        nonlocal asked
        if path != RELEASE:
            return
        serial, asked = 2 + asked // 2, asked + 1
        files = make_files(serial)
        server.files = {**files, **signed_release(release_of(files[MANIFEST], serial, number=10 + serial))}

    with serve() as server:
        server.before, server.pause_s = before, PAUSE_S
        print(server.url, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
