"""Hostile bundles, releases and servers, against a device that has bundle 5 and follows release 9.

None may change the bundle that the device runs. Each attack is tried through the code that an app runs: a real server,
`Updates.check`, `Updates.current`, and a restart. An honest update is tried between them, because a device that accepts nothing
would pass too.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.reliability.attacks import FOLLOWED, HELD, Attack, attacks, honest
from benchmarks.reliability.released import KEYS, KEYS_OF_TWO, NOW_MS, Server, make_bundle, release_of, serve
from pocketrank.device.bundle.files import MANIFEST, BundleError
from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import ClientError
from pocketrank.device.updates import BundleStore, ProbeConfig, UpdateConfig, Updates

__all__ = ["attack"]

HONEST_EVERY = 50
"""Attacks between two honest updates."""
TIMEOUT_S = 0.3
"""Timeout of a device's call, after which it gives up an answer that arrives too slowly."""
ACCEPTED = "accepted"
"""Outcome that no attack may have."""

Progress = Callable[[float], None]


def attack(work: Path, seed: int, progress: Progress, every: int = 1) -> dict[str, Any]:
    """Try every attack and return `hostile_bundles`, `hostile_accepted`, and the outcomes `by_kind`: accepted, or what refused.

    `work` is an empty folder; each `every`th of the attacks is tried. Raises `BenchmarkError` when an honest update is refused,
    because the figures would then mean nothing.
    """
    by_kind = defaultdict[str, Counter[str]](Counter)
    device, update = work / "device", honest()
    _install(device, make_bundle(work / "held", HELD))
    tried = list(attacks(seed))[::every]
    with serve() as server:
        for i, each in enumerate(tried):
            if i % HONEST_EVERY == 0:
                for keys in (KEYS, KEYS_OF_TWO):
                    if (outcome := _try(Attack("honest", dict(update), keys), device, work / "tried", server)) != ACCEPTED:
                        raise BenchmarkError("an honest update", ACCEPTED, outcome)
            by_kind[each.kind][_try(each, device, work / "tried", server)] += 1
            progress((i + 1) / len(tried))
    return {
        "hostile_bundles": sum(outcome.total() for outcome in by_kind.values()),
        "hostile_accepted": sum(outcome[ACCEPTED] for outcome in by_kind.values()),
        "by_kind": {kind: dict(outcome) for kind, outcome in by_kind.items()},
    }


def _install(device: Path, held: Path) -> None:
    """Make a device that has run bundle 5 for long."""
    store = BundleStore(device, KEYS, clock=lambda: NOW_MS)
    updates = Updates(store, device_id="device")
    updates.add(held)
    updates.current()
    store.change(trial=None, starts=0, release=release_of((held / MANIFEST).read_bytes(), HELD, number=FOLLOWED))


def _try(each: Attack, device: Path, folder: Path, server: Server) -> str:
    """Try an attack on a copy of the device. Return `ACCEPTED` when another bundle than 5 runs, now or after a restart; else
    what refused it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(device, folder)
    server.files = each.sent
    if each.spoil is not None:
        each.spoil(folder)

    def start() -> Updates:
        store = BundleStore(folder, each.keys, clock=lambda: each.now_ms)
        config = UpdateConfig(probe=ProbeConfig(seconds_max=1.0), bytes_max=1 << 20)
        return Updates(store, device_id="device", config=config)

    updates = start()
    updates.current()
    with CloudClient(server.url, timeout_s=TIMEOUT_S) as client:
        try:
            refused: str = updates.check(client)
        except (BundleError, ClientError) as err:
            refused = type(err).__name__
    # A device whose own disk was changed may end without a model; no server may bring it there.
    fine = {HELD} if each.spoil is None else {HELD, None}
    if not {updates.current().serial, start().current().serial} <= fine or updates.store.state.staged is not None:
        return ACCEPTED
    return refused
