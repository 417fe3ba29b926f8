"""An emulation, from the address of a server to what happened, and to a report of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from pocketrank.device import Bundle, CloudClient
from pocketrank.sdk_demo.emulator.errors import EmulatorError, PolicyError, WrongWorldError
from pocketrank.sdk_demo.emulator.figures import figures
from pocketrank.sdk_demo.emulator.fleet import plan, run_fleet
from pocketrank.sdk_demo.emulator.policies import DEFAULT_POLICIES, POLICIES, Policy
from pocketrank.sdk_demo.emulator.records import SessionRecord
from pocketrank.sdk_demo.world import World, WorldConfig

__all__ = ["Played", "emulate", "play"]


@dataclass(frozen=True)
class Played:
    """What happened."""

    records: list[SessionRecord]
    """Every session of every policy."""
    users: int
    """Users that came."""
    split_version: dict[str, str | None]
    """That of the `server`, and that of the `phones`, None where no policy had models."""


def play(
    server: str,
    *,
    clients: int = 8,
    sessions: int = 200,
    seed: int = 0,
    world: WorldConfig | Path | None = None,
    policies: Sequence[str | Callable[[Bundle | None], Policy]] = DEFAULT_POLICIES,
    bundle: Path | None = None,
    feedback_delay_s: float = 0.0,
    traces: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Played:
    """Let `clients` phones at a time play `sessions` sessions under each policy against `server`.

    Each policy meets the same users with the same seeds, and has an experiment of its own at the server: what it learns of a
    user there is known to nobody else, so equal seeds bring equal results however often a server is used. A policy that
    `POLICIES` has not is given as what makes it of a bundle. `world` is the one that the server's run was trained in, or its
    TOML (None: the default), `bundle` the folder to install on the phones (None: downloaded from the server). Phones hold
    feedback back for `feedback_delay_s` of the user's time, and write a trace of each session into the folder `traces`.
    `progress` gets the share done.

    Raises `ClientError` (no server, or one that stays away for longer than a page lasts), `BundleError`, `RuntimeLoadError`,
    `WorldError`, `TraceError`, and `EmulatorError` (the tree is in `errors`).
    """
    unknown = [name for name in policies if isinstance(name, str) and name not in POLICIES]
    if unknown or not policies:
        raise PolicyError("policies", f"some of {', '.join(POLICIES)}", ", ".join(unknown) or "none")
    for name, value, least in (
        ("clients", clients, 1),
        ("sessions", sessions, 1),
        ("seed", seed, 0),
        ("feedback_delay_s", feedback_delay_s, 0),
    ):
        if not value >= least:
            raise EmulatorError(name, f"at least {least}", str(value))
    if traces is not None:
        try:
            traces.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EmulatorError(str(traces), "a folder for traces", error.strerror or str(error)) from error
    kinds = [POLICIES[kind] if isinstance(kind, str) else kind for kind in dict.fromkeys(policies)]
    with ExitStack() as stack:
        client = stack.enter_context(CloudClient(server))
        health = client.health()
        place = World(world if isinstance(world, WorldConfig) else WorldConfig.load(world))
        _same_world(server, health, place)
        opened = None
        if any(not isinstance(kind, str) or POLICIES[kind].uses_models for kind in policies):
            if bundle is None:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="pocketrank-")))
                opened = client.download_bundle(folder / "bundle")
            else:
                opened = Bundle.open(bundle)
        playing = [kind(opened) for kind in kinds]
        client.close()  # the phones have lines of their own
        visits = plan(len(place.users), sessions, seed)
        records = run_fleet(
            server,
            place,
            visits,
            playing,
            clients=clients,
            seed=seed,
            run_id=uuid4().hex,
            feedback_delay_ms=round(1000 * feedback_delay_s),
            traces=traces,
            progress=progress,
        )
    versions = {"server": health.get("split_version"), "phones": opened.split_version if opened else None}
    return Played(records, len(visits), versions)


def emulate(
    server: str,
    *,
    clients: int = 8,
    sessions: int = 200,
    seed: int = 0,
    world: Path | None = None,
    policies: Sequence[str] = DEFAULT_POLICIES,
    bundle: Path | None = None,
    traces: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """`play`, and the report of it: that of `figures.figures` with what was asked for, all plain values, `simulated` true."""
    started = time.monotonic()
    played = play(
        server,
        clients=clients,
        sessions=sessions,
        seed=seed,
        world=world,
        policies=policies,
        bundle=bundle,
        traces=traces,
        progress=progress,
    )
    return {
        "simulated": True,
        "sessions": sessions,
        "users": played.users,
        "clients": clients,
        "seed": seed,
        "split_version": played.split_version,
        **figures(played.records, tuple(dict.fromkeys(policies)), seed=seed),
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
