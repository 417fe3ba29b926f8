"""`pocketrank emulate`: many phones of the simulated world against a live server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pocketrank.sdk_demo.cli.emulation import print_emulation
from pocketrank.sdk_demo.cli.options import POLICIES, parse_list
from pocketrank.sdk_demo.cli.output import JsonTarget, progress

__all__ = ["ALL_POLICIES", "emulate"]

ALL_POLICIES = (*POLICIES, "refreshed", "greedy", "beam", "informed")
"""What `--policy` takes. The three that take part by default come first."""


def emulate(
    server: Annotated[str, typer.Option(help="Address of a running `pocketrank serve`, such as http://127.0.0.1:8080.")],
    clients: Annotated[int, typer.Option(min=1, help="Phones that swipe at the same time.")] = 8,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions for each policy.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Users, their moods and their luck; the same for each policy.")] = 0,
    world: Annotated[
        Path | None, typer.Option(help="TOML with the parameters of the simulated world; that of the run.")
    ] = None,
    policy: Annotated[str, typer.Option(help=f"Comma list of {', '.join(ALL_POLICIES)}.")] = ",".join(POLICIES),
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle to install on the phones. [default: download it from the server]")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Folder for a trace of each session, for `pocketrank inspect`. [default: none]")
    ] = None,
    json: Annotated[str | None, typer.Option(help="File for the report; `-` prints it to stdout.")] = None,
) -> None:
    """Let simulated users swipe through pages of a live server.

    Each phone runs the real device SDK with the exported bundle over HTTP. Every policy meets the same users with the same
    seeds: `cloud_order` is the floor, `oracle` (it knows the user's state) the ceiling, `on_device` the product. `refreshed`
    is cloud order that asks for a page after every 6 items; `greedy` and `beam` are the device's two searches. The users are
    simulated and so is every figure.

    \b
    pocketrank emulate --server http://127.0.0.1:8080 --clients 8 --sessions 200 --seed 1 --json report.json
    pocketrank emulate --server http://127.0.0.1:8080 --policy cloud_order,on_device --sessions 50 --json -
    pocketrank emulate --server http://127.0.0.1:8080 --policy on_device --sessions 10 --trace traces

    Writes a table to the terminal and, with --json, `policies.POLICY.*` and what can be told from them together.
    """
    policies = parse_list(policy, ALL_POLICIES, "--policy")
    target = JsonTarget(json)

    from pocketrank.sdk_demo.emulator import emulate as emulate_clients

    with progress(target.console, "emulating phones") as told:
        report = emulate_clients(
            server,
            clients=clients,
            sessions=sessions,
            seed=seed,
            world=world,
            policies=policies,
            bundle=bundle,
            traces=trace,
            progress=told,
        )
    target.write(report)
    print_emulation(target.console, report, report["latency_ms"])
