"""`pocketrank demo`: the whole house, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pocketrank.sdk_demo.cli.emulation import print_emulation
from pocketrank.sdk_demo.cli.stages import stages

__all__ = ["demo"]


def demo(out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("runs/demo")) -> None:
    """Simulate, train, export, serve, emulate and report.

    Takes minutes on two cores. The users are simulated and the report says so.

    \b
    pocketrank demo
    pocketrank demo --out runs/second

    Writes into --out: `report.html` (plots), `report.json` (every figure), the run and the bundle. An earlier demo there is
    replaced.
    """
    from pocketrank.sdk_demo.demo import run_demo

    console = Console()
    with stages(console) as tell:
        report = run_demo(out, progress=tell)
    print_emulation(console, report["emulation"], report["latency_ms"])
    steps = ", ".join(f"{step} {seconds:.0f}" for step, seconds in report["seconds"].items())
    console.print(f"seconds: {steps}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {out / 'report.html'} and {out / 'report.json'}", markup=False, soft_wrap=True)
