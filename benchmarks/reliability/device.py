"""The device's side of `benchmarks.reliability`: what it loses, applies twice or runs when it is killed, attacked or cut off.

The report is `device`::

    kills                       of processes, with -9: `events` and `switches` together
    events_lost                 events that the session had accepted and the cloud never received
    events_twice                events that the cloud applied twice
    invalid_bundles_active      starts after a kill that found no valid bundle, or a half-made one
    hostile_bundles, hostile_accepted
    failed_swipes               while the cloud was unavailable, was slow, answered garbage, 500 to every other call or half an
                                answer, and on a full disk; `benchmarks.reliability.faults` defines a failed swipe
    events                      kills while feedback is written and uploaded (`benchmarks.reliability.kills_events`)
      .events_taken, events_resent (the receipt had been lost), repeats_taken (of ids known before the kill), damaged (files or
      rows that a store could not read), not_emptied (stores whose events did not all arrive in the end)
      .killed, .during          what was killed, and what was going on just then; more than one thing where two threads work
    switches                    kills while bundles are switched (`benchmarks.reliability.kills_bundle`)
    hostile                     attacks by kind (`benchmarks.reliability.hostile`)
    faults.situations.<name>    swipes, their times, and what was counted (`benchmarks.reliability.faults`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from benchmarks.command import figure_table
from benchmarks.reliability.faults import swipe_through_faults
from benchmarks.reliability.kills_events import kill_devices
from pocketrank.sdk_demo.cli.output import progress

__all__ = ["KILLS", "PARTS", "measure_device", "print_device"]

KILLS = 1200
"""Default number of processes to kill."""
SWITCH_SHARE = 0.25
"""Share of the kills that happen while bundles are switched; a switch is short and has few moments."""
PARTS = {
    "events": "killing devices that write and upload",
    "switches": "killing devices that switch bundles",
    "hostile": "attacking devices",
    "faults": "swiping through faults",
}
"""Parts of the benchmark, and the text of their progress bars."""
_HEADLINES = (
    "kills", "events_lost", "events_twice", "invalid_bundles_active", "hostile_bundles", "hostile_accepted", "failed_swipes",
)  # fmt: skip

Progress = Callable[[float], None]


def measure_device(parts: Sequence[str], kills: int, seed: int, console: Console) -> dict[str, Any]:
    """Measure `parts` of `PARTS` and return the report, headlines first. Raises `BenchmarkError`."""
    switches = max(1, round(SWITCH_SHARE * kills))
    found: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        if part in parts:
            with TemporaryDirectory(prefix="pocketrank-") as work, progress(console, PARTS[part]) as update:
                found[part] = _measure(part, Path(work), kills - switches, switches, seed, update)
    headlines = {name: sum(figures.get(name, 0) for figures in found.values()) for name in _HEADLINES}
    known = {name for figures in found.values() for name in figures}
    return {name: value for name, value in headlines.items() if name in known} | found


def _measure(part: str, work: Path, events: int, switches: int, seed: int, update: Progress) -> dict[str, Any]:
    match part:
        case "events":
            return kill_devices(work, events, seed, update)
        case "switches":
            from benchmarks.reliability.kills_bundle import kill_switches  # with the next it needs the extra that signs bundles

            return kill_switches(work, switches, seed, update)
        case "hostile":
            from benchmarks.reliability.hostile import attack

            return attack(work, seed, update)
        case _:
            return swipe_through_faults(work, update)


def print_device(console: Console, report: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    table = figure_table("A device under kills, attacks and faults", "")
    for name in _HEADLINES:
        if name in report:
            table.add_row(name.replace("_", " "), str(report[name]))
    console.print(table)
    if "events" in report:
        during = report["events"]["during"]
        table = figure_table("Activity at the moment of the kill", *during)
        table.add_row("", *map(str, during.values()))
        console.print(table)
    if "faults" in report:
        columns = ("swipes", "failed", "p50", "p99", "longest", "events lost", "calls failed")
        table = figure_table("Swipes through faults, milliseconds", *columns)
        for name, day in report["faults"]["situations"].items():
            counts = day["counts"]
            times = [f"{day[column]:.2f}" for column in ("p50_ms", "p99_ms", "max_ms")]
            failed = counts["pages_missing"] + counts["uploads_failed"]
            table.add_row(name, str(day["swipes"]), str(day["failed_swipes"]), *times, str(day["events_lost"]), str(failed))
        console.print(table)
