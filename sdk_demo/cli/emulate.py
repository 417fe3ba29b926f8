"""`pocketrank emulate`: phones with simulated users against a live server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pocketrank.sdk_demo.cli.emulation import print_emulation
from pocketrank.sdk_demo.cli.errors import OptionError
from pocketrank.sdk_demo.cli.options import POLICIES, parse_list, parse_source
from pocketrank.sdk_demo.cli.output import JsonTarget, progress
from pocketrank.sdk_demo.cli.source import load_log

__all__ = ["ALL_POLICIES", "emulate"]

ALL_POLICIES = (*POLICIES, "refreshed", "greedy", "beam", "informed")
"""Values of `--policy`. The first three are the default."""
OF_LOGS = ("cloud_order", "on_device")
"""Those that know nothing of a simulated world, which are all for the users of a log."""


def emulate(
    server: Annotated[str, typer.Option(help="Address of a running `pocketrank serve`, such as http://127.0.0.1:8080.")],
    clients: Annotated[int, typer.Option(min=1, help="Phones that swipe at the same time.")] = 8,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions for each policy.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of users, moods and luck, equal for all policies.")] = 0,
    world: Annotated[
        Path | None,
        typer.Option(help="TOML file of the world that the run was trained in. [default: the default world]"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Log whose users swipe: a data file or a folder of `pocketrank data import`. What they do with an item is "
            "drawn from its impressions in the log, which shows that all works, and no gains. [default: simulated users]"
        ),
    ] = None,
    tables: Annotated[Path | None, typer.Option(help="Folder where the paths in the data file begin.")] = None,
    policy: Annotated[str, typer.Option(help=f"Comma list of {', '.join(ALL_POLICIES)}.")] = ",".join(POLICIES),
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle to install on the phones. [default: downloaded from the server]")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Folder for a trace of each session, for `pocketrank inspect`. [default: no traces]")
    ] = None,
    json: Annotated[str | None, typer.Option(help="File for the report; `-` prints it to stdout.")] = None,
) -> None:
    """Let simulated users swipe through the pages of a live server.

    Each phone runs the real device SDK with the exported bundle over HTTP. Every policy has the same users with the same seeds.
    `cloud_order` is the lower bound, `oracle`, which knows the user's hidden state, the upper bound, `on_device` the product.
    `refreshed` is cloud order with a new page after every 6 items; `greedy` and `beam` are the device's two searches;
    `informed` knows items and users perfectly, but not the state of the session. Every figure is that of simulated users.

    \b
    pocketrank emulate --server http://127.0.0.1:8080 --clients 8 --sessions 200 --seed 1 --json report.json
    pocketrank emulate --server http://127.0.0.1:8080 --policy cloud_order,on_device --sessions 50 --json -
    pocketrank emulate --server http://127.0.0.1:8080 --policy on_device --sessions 10 --trace traces
    pocketrank emulate --server http://127.0.0.1:8080 --data examples/shop.toml --sessions 20

    Writes a table to the terminal and, with --json, `policies.POLICY.*` and comparisons between the policies.
    """
    if data is not None and policy == ",".join(POLICIES):
        policy = ",".join(OF_LOGS)
    policies = parse_list(policy, ALL_POLICIES if data is None else OF_LOGS, "--policy")
    if data is not None and world is not None:
        raise OptionError("--world", "no --data", data)
    target = JsonTarget(json)
    log = None
    if data is not None:
        log = load_log(target.console, parse_source(data), world=None, seed=seed, tables=tables)

    from pocketrank.sdk_demo.emulator import emulate as emulate_clients

    with progress(target.console, "emulating phones") as report_progress:
        report = emulate_clients(
            server,
            clients=clients,
            sessions=sessions,
            seed=seed,
            world=world,
            policies=policies,
            bundle=bundle,
            traces=trace,
            log=log,
            progress=report_progress,
        )
    target.write(report)
    print_emulation(target.console, report, report["latency_ms"])
