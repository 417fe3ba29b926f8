"""`pocketrank demo`: the whole system in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pocketrank.sdk_demo.cli.emulation import print_emulation
from pocketrank.sdk_demo.cli.output import print_line
from pocketrank.sdk_demo.cli.stages import stages

__all__ = ["demo"]


def demo(out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path("runs/demo")) -> None:
    """Simulate a world, train, export, serve, emulate phones and report.

    Takes some minutes on two cores. The users are simulated, and the report says so.

    \b
    pocketrank demo
    pocketrank demo --out runs/second

    Writes into --out: `report.html` (plots), `report.json` (every figure), the run, the signed and released bundle, and its
    key. An earlier demo there is replaced, except its key.
    """
    from pocketrank.sdk_demo.demo import BUNDLE, KEY, RUN, run_demo

    console = Console()
    with stages(console) as report_progress:
        report = run_demo(out, progress=report_progress)
    print_emulation(console, report["emulation"], report["latency_ms"])
    steps = ", ".join(f"{step} {seconds:.0f}" for step, seconds in report["seconds"].items())
    print_line(console, f"seconds: {steps}")
    print_line(console, f"report: {out / 'report.html'} and {out / 'report.json'}")
    print_line(console, f"public key: {report['public_key']} (in {out / KEY}.pub)")
    print_line(console, "\nServe this bundle to a device of your own:")
    print_line(console, f"  pocketrank serve --run {out / RUN} --bundle {out / BUNDLE}")
    print_line(console, "and let the device trust the key, in Python:")
    print_line(console, f'  keys = TrustedKeys.one("{report["public_key"]}")')
