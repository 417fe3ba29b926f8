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
    sequences                   of random steps of clocks, suspends and restarts (`benchmarks.reliability.clocks`)
    stuck_sessions              sessions that did not get a page and send their feedback after that
    lost_events                 events that a session accepted and the log does not have
    states_differing            users' states that are not those of right clocks within the stated bound
    clocks
      .bound_ms, deviation_ms   largest bound, and the largest time between two events that stand in the wrong order
      .set_while_on, .set_while_off  the same: the latter for sequences in which a clock was set around a start of its device
                                or of the server, or more than 30 days went by
      .counts                   what happened, `corrected` events among it
      .failed                   sequences that failed; `--only clocks --sequences 1 --seed N` repeats one
    faults.situations.<name>    swipes, their times, and what was counted (`benchmarks.reliability.faults`)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from benchmarks.command import figure_table
from benchmarks.reliability.clocks import run_chaos
from benchmarks.reliability.faults import swipe_through_faults
from benchmarks.reliability.hostile import attack
from benchmarks.reliability.kills_bundle import kill_switches
from benchmarks.reliability.kills_events import kill_devices
from benchmarks.reliability.parts import Part, headline_table

__all__ = ["HEADLINES", "KILLS", "PARTS", "print_device"]

KILLS = 1200
"""Default number of processes to kill."""
SWITCH_SHARE = 0.25
"""Share of the kills that happen while bundles are switched; a switch is short and has few moments."""


def _switches(kills: int) -> int:
    return max(1, round(SWITCH_SHARE * kills))


PARTS = {
    "events": Part(
        "killing devices that write and upload",
        lambda work, options, update: kill_devices(work, options.kills - _switches(options.kills), options.seed, update),
    ),
    "switches": Part(
        "killing devices that switch bundles",
        lambda work, options, update: kill_switches(work, _switches(options.kills), options.seed, update),
    ),
    "hostile": Part("attacking devices", lambda work, options, update: attack(work, options.seed, update)),
    "clocks": Part("setting clocks", lambda work, options, update: run_chaos(work, options.sequences, options.seed, update)),
    "faults": Part("swiping through faults", lambda work, options, update: swipe_through_faults(work, update)),
}
HEADLINES = (
    "kills", "events_lost", "events_twice", "invalid_bundles_active", "hostile_bundles", "hostile_accepted", "failed_swipes",
    "sequences", "stuck_sessions", "lost_events", "states_differing",
)  # fmt: skip
"""Figures that the report begins with."""


def print_device(console: Console, report: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    console.print(headline_table("A device under kills, attacks and faults", HEADLINES, report))
    if "events" in report:
        during = report["events"]["during"]
        table = figure_table("Activity at the moment of the kill", *during)
        table.add_row("", *map(str, during.values()))
        console.print(table)
    if "clocks" in report:
        clocks = report["clocks"]
        table = figure_table("Dates under clocks that are set, seconds", "sequences", "bound", "largest deviation")
        for name in ("set_while_on", "set_while_off"):
            part = clocks[name]
            times = [f"{part[figure] / 1e3:,.0f}" for figure in ("bound_ms", "deviation_ms")]
            table.add_row(name.replace("_", " "), str(part["sequences"]), *times)
        console.print(table)
        for failed in clocks["failed"]:
            console.print(f"failed: {failed} (repeat it with --only clocks --sequences 1 --seed {failed['seed']})")
    if "faults" in report:
        columns = ("swipes", "failed", "p50", "p99", "longest", "events lost", "calls failed")
        table = figure_table("Swipes through faults, milliseconds", *columns)
        for name, day in report["faults"]["situations"].items():
            counts = day["counts"]
            times = [f"{day[column]:.2f}" for column in ("p50_ms", "p99_ms", "max_ms")]
            failed = counts["pages_missing"] + counts["uploads_failed"]
            table.add_row(name, str(day["swipes"]), str(day["failed_swipes"]), *times, str(day["events_lost"]), str(failed))
        console.print(table)
