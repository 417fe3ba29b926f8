"""An emulation, from the address of a server to a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from device import Bundle, CloudClient, Ranker
from sdk_demo.emulator.errors import EmulatorError, PolicyError, WrongWorldError
from sdk_demo.emulator.figures import figures
from sdk_demo.emulator.fleet import plan, run_fleet
from sdk_demo.emulator.policies import POLICIES, OnDevice
from sdk_demo.world import World, WorldConfig

__all__ = ["emulate"]


def emulate(
    server: str,
    *,
    clients: int = 8,
    sessions: int = 200,
    seed: int = 0,
    world: Path | None = None,
    policies: Sequence[str] = tuple(POLICIES),
    bundle: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Let `clients` phones at a time play `sessions` sessions under each policy against `server`, and return the report.

    Each policy meets the same users with the same seeds, and has an experiment of its own at the server: what it learns of a
    user there is known to nobody else, so equal seeds bring equal results however often a server is used. `world` is the TOML
    of the world that the server's run was trained in (None: the default), `bundle` the folder to install on the phones (None:
    downloaded from the server). `progress` gets the share done. The report is that of `figures.figures` with what was asked
    for, all plain values, `simulated` true.

    Raises `ClientError` (no server, or one that stays away for longer than a page lasts), `BundleError`, `RuntimeLoadError`,
    `WorldError`, and `EmulatorError` (the tree is in `errors`).
    """
    unknown = [name for name in policies if name not in POLICIES]
    if unknown or not policies:
        raise PolicyError("policies", f"some of {', '.join(POLICIES)}", ", ".join(unknown) or "none")
    for name, value, least in (("clients", clients, 1), ("sessions", sessions, 1), ("seed", seed, 0)):
        if value < least:
            raise EmulatorError(name, f"at least {least}", str(value))
    started = time.monotonic()
    names = tuple(dict.fromkeys(policies))
    with ExitStack() as stack:
        client = stack.enter_context(CloudClient(server))
        health = client.health()
        place = World(WorldConfig.load(world))
        _same_world(server, health, place)
        ranker = None
        if OnDevice.name in names:
            if bundle is None:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="pocketrank-")))
                opened = client.download_bundle(folder / "bundle")
            else:
                opened = Bundle.open(bundle)
            ranker = Ranker.open(opened)
        client.close()  # the phones have lines of their own
        visits = plan(len(place.users), sessions, seed)
        records = run_fleet(
            server,
            place,
            visits,
            [POLICIES[name](ranker) for name in names],
            clients=clients,
            seed=seed,
            run_id=uuid4().hex,
            progress=progress,
        )
    return {
        "simulated": True,
        "sessions": sessions,
        "users": len(visits),
        "clients": clients,
        "seed": seed,
        "split_version": {"server": health.get("split_version"), "phones": ranker.split_version if ranker else None},
        **figures(records, names, seed=seed),
        "seconds": round(time.monotonic() - started, 1),
    }


def _same_world(server: str, health: dict[str, Any], world: World) -> None:
    """A catalogue of another size is another world; users would be shown what they cannot know."""
    expected = {"simulated": True, "items": len(world.items), "users": len(world.users)}
    got = {name: health.get(name) for name in expected}
    if got != expected:
        raise WrongWorldError(server, _told(expected), _told(got))


def _told(facts: dict[str, Any]) -> str:
    kind = "a simulated world" if facts["simulated"] else "no simulated world"
    return f"a run of {kind} with {facts['items']} items and {facts['users']} users"
