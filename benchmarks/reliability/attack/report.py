"""The report of all cases, and its table."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from benchmarks.command import figure_table
from benchmarks.reliability.attack.cases import CASES
from benchmarks.reliability.attack.measure import AttackConfig, measure_case
from benchmarks.reliability.attack.world import make_world
from benchmarks.reliability.parts import cell, headline_table
from pocketrank.cloud.training.run import Run
from pocketrank.sdk_demo.cli.output import progress

__all__ = ["measure_attacks", "print_attacks", "summary"]

_WORST = ("memory_growth_mb", "memory_peak_mb", "page_p99_ms", "p99_ratio", "livez_max_ms", "back_s")
_SUMS = ("server_errors", "spoofed_accepted", "vectors_leaked", "unsigned_accepted", "events_lost")
_COLUMNS = ("memory_peak_mb", "quiet_p99_ms", "page_p99_ms", "server_errors", "livez_max_ms", "back_s")


def measure_attacks(
    options: Namespace, console: Console, config: AttackConfig | None = None, run: Run | None = None
) -> dict[str, Any]:
    """Carry out the cases that `options.only` names, or all, over `run` or one that is drawn. Raises `BenchmarkError`."""
    config = config or AttackConfig()
    cases: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory(prefix="pocketrank-") as folder:
        with progress(console, "drawing a run to serve"):
            world = make_world(Path(folder), config.items, config.users, options.seed, run)
        for name, case in CASES.items():
            if name in (options.only or CASES):
                with TemporaryDirectory(prefix="pocketrank-") as work, progress(console, name.replace("_", " ")) as update:
                    figures = measure_case(case, world, Path(work), options.seed, config, update)
                cases[name] = {"does": case.does, "holds": case.holds, **figures}
    return summary(cases)


def summary(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the report of cases: the worst and the sums of their figures, then the cases."""
    report: dict[str, Any] = {"cases_run": len(cases), "cases_held": sum(case["held"] for case in cases.values())}
    for name in _WORST:
        values = [case[name] for case in cases.values()]
        report[name] = None if None in values else max(values)
    for name in _SUMS:
        values = [case[name] for case in cases.values() if name in case]
        if values:
            report[name] = sum(values)
    return report | {"cases": dict(cases)}


def print_attacks(console: Console, report: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    headlines = [name for name in report if name != "cases"]
    console.print(headline_table("A server under attack: the worst of all cases", headlines, report))
    table = figure_table("Cases: MB, ms and s", "held", "peak", "quiet", "p99", "5xx", "livez", "back")
    for name, case in report["cases"].items():
        table.add_row(name, "yes" if case["held"] else "no", *(cell(case[column]) for column in _COLUMNS))
    console.print(table)
    for name, case in report["cases"].items():
        if case["missed"]:
            console.print(f"{name} misses {', '.join(case['missed'])}")
