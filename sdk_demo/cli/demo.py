"""`pocketrank demo`: the whole house, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sdk_demo.cli.output import print_report

__all__ = ["demo"]


def demo(out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("runs/demo")) -> None:
    """Simulate, train, export, serve, emulate and report.

    Takes minutes on two cores. The users are simulated and the report says so.

    \b
    pocketrank demo
    pocketrank demo --out runs/second

    Writes into --out: `report.html` (plots), `report.json` (every figure), the run and the bundle.
    """
    from sdk_demo.demo import run_demo

    report = run_demo(out)
    console = Console()
    print_report(console, report["emulation"], rows="policies", title="simulated users, per session")
    console.print(f"report: {out / 'report.html'} and {out / 'report.json'}", markup=False, soft_wrap=True)
