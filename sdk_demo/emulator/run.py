"""Runs an emulation against a server, and makes a report of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from pocketrank.cloud.data.log import Log
from pocketrank.device import Bundle, CloudClient
from pocketrank.sdk_demo.emulator.errors import EmulatorError, PolicyError, WrongWorldError
from pocketrank.sdk_demo.emulator.figures import figures
from pocketrank.sdk_demo.emulator.fleet import plan, run_fleet
from pocketrank.sdk_demo.emulator.logged import LoggedUsers
from pocketrank.sdk_demo.emulator.policies import DEFAULT_POLICIES, POLICIES, Policy
from pocketrank.sdk_demo.emulator.records import SessionRecord
from pocketrank.sdk_demo.world import World, WorldConfig

__all__ = ["EmulationResult", "emulate", "play"]


@dataclass(frozen=True)
class EmulationResult:
    """Records of an emulation."""

    records: list[SessionRecord]
    """Every session of every policy."""
    users: int
    """Number of different users."""
    split_version: dict[str, str | None]
    """Split version of the `server` and of the `phones`; None where no policy had models."""


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
    log: Log | None = None,
    progress: Callable[[float], None] | None = None,
) -> EmulationResult:
    """Run `sessions` sessions under each policy against `server`, on `clients` phones at a time.

    All policies have the same users with the same seeds. Each has an experiment of its own at the server, whose feedback no
    other experiment sees, so that equal seeds give equal results however often a server is used. A policy is a name in
    `POLICIES`, or a function that makes one from a bundle. `world` is the world that the server's run was trained in, or its
    TOML file (None: the default world); with a `log` its users swipe (`logged`), and there is no world. `bundle` is the folder
    to install on the phones (None: downloaded from the server). Phones delay their feedback by `feedback_delay_s` of the user's
    time and write a trace of each session into the folder `traces`. `progress` is called with the share done.

    Raises `ClientError` when the server is unavailable for longer than a page lasts, `BundleError`, `RuntimeLoadError`,
    `WorldError`, `TraceError`, and `EmulatorError` (the tree is in `errors`).
    """
    unknown = [name for name in policies if isinstance(name, str) and name not in POLICIES]
    if unknown or not policies:
        raise PolicyError("policies", f"some of {', '.join(POLICIES)}", ", ".join(unknown) or "none")
    for name, value, minimum in (
        ("clients", clients, 1),
        ("sessions", sessions, 1),
        ("seed", seed, 0),
        ("feedback_delay_s", feedback_delay_s, 0),
    ):
        if not value >= minimum:
            raise EmulatorError(name, f"at least {minimum}", str(value))
    if traces is not None:
        try:
            traces.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EmulatorError(str(traces), "a folder for traces", error.strerror or str(error)) from error
    factories = [POLICIES[policy] if isinstance(policy, str) else policy for policy in dict.fromkeys(policies)]
    with ExitStack() as stack:
        client = stack.enter_context(CloudClient(server))
        health = client.health()
        users: World | LoggedUsers
        if log is None:
            users = World(world if isinstance(world, WorldConfig) else WorldConfig.load(world))
            _check_world(server, health, users)
        else:
            users = LoggedUsers(log)
            if health.get("items") != len(log.items):
                raise WrongWorldError(server, f"a run of {len(log.items)} items", f"a run of {health.get('items')} items")
        opened = None
        if any(not isinstance(policy, str) or POLICIES[policy].uses_models for policy in policies):
            if bundle is None:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="pocketrank-")))
                opened = client.download_bundle(folder / "bundle")
            else:
                opened = Bundle.open(bundle)
        made = [factory(opened) for factory in factories]
        client.close()  # each phone has a connection of its own
        visits = plan(len(users.users), sessions, seed)
        records = run_fleet(
            server,
            users,
            visits,
            made,
            clients=clients,
            seed=seed,
            run_id=uuid4().hex,
            feedback_delay_ms=round(1000 * feedback_delay_s),
            traces=traces,
            progress=progress,
        )
    versions = {"server": health.get("split_version"), "phones": opened.split_version if opened else None}
    return EmulationResult(records, len(visits), versions)


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
    log: Log | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Run `play` and return its report of plain values: that of `figures.figures`, the arguments, and `simulated` true."""
    started = time.monotonic()
    result = play(
        server,
        clients=clients,
        sessions=sessions,
        seed=seed,
        world=world,
        policies=policies,
        bundle=bundle,
        traces=traces,
        log=log,
        progress=progress,
    )
    return {
        "simulated": True,
        "responses": "simulated" if log is None else "drawn from the log's impressions of the same item",
        "sessions": sessions,
        "users": result.users,
        "clients": clients,
        "seed": seed,
        "split_version": result.split_version,
        **figures(result.records, tuple(dict.fromkeys(policies)), seed=seed),
        "seconds": round(time.monotonic() - started, 1),
    }


def _check_world(server: str, health: dict[str, Any], world: World) -> None:
    """Raise `WrongWorldError` for a catalogue of another size, which belongs to another world with other items."""
    expected = {"simulated": True, "items": len(world.items), "users": len(world.users)}
    got = {name: health.get(name) for name in expected}
    if got != expected:
        raise WrongWorldError(server, _describe(expected), _describe(got))


def _describe(facts: dict[str, Any]) -> str:
    kind = "a simulated world" if facts["simulated"] else "a log that is not simulated"
    return f"a run of {kind} with {facts['items']} items and {facts['users']} users"
