"""The cloud's side of `benchmarks.reliability`: the real server overloaded, killed, without its store and on a full disk.

The report is `cloud`::

    unexpected_5xx              of all parts: answers 5xx that no fault explains, connections that the server dropped, and
                                answers that cannot be read or are not for this request
    memory_growth               percent, from after the warm-up of the overload to its end
    recovery_s                  from the end of the overload to whole pages as fast as before it; null: not within the calm
    kills                       of servers and workers, with -9
    events_lost                 acknowledged events that the log does not have
    events_twice                events that are in the log twice, or that a restart or a user's state counted twice
    overload                    twice the capacity for minutes (`benchmarks.reliability.cloud_overload`)
      .capacity_rps, offered_rps, goodput_rps (pages), whole_rps (pages that are not degraded)
      .answers, .unexpected     by status; answers that a server should never give
      .before, .overload, .after: pages, p50_ms, p99_ms, whole_share, degraded_share by reason, mean compute price
      .series                   the same in parts of the overload, and memory in bytes
      .load_busy, late_p99_ms   of the load, which was no bottleneck where the first is well below 1 and the second small
    kills_under_load            (`benchmarks.reliability.cloud_kills`)
      .killed                   serving, starting, workers
      .batches, resent          acknowledged; those of them that were sent more than once
      .effects_seen, effects_wrong  users' states that were checked after a batch was sent again
    store                       a Valkey killed and restarted empty (`benchmarks.reliability.cloud_store`)
      .vectors_s                longest time from its restart to pages with vectors; null: no page had them again
      .before, .away, .after    as in `overload`, and pages without_vectors
    disk                        a full disk (`benchmarks.reliability.cloud_disk`)
      .refused, taken_while_full, taken_again_s, refused_without_retry_after, readyz_while_full
      .pages, pages_while_full  without feedback
    start                       on a log of `events` (`benchmarks.reliability.cloud_start`)
      .empty, replay, snapshot  ready_s, ready_cpu_s, memory_bytes, events; CPU and memory per event beyond the empty log
      .stop_s, snapshot_bytes   the stop that wrote the snapshot
      .stall                    of pages while a snapshot is written, and before
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from benchmarks.command import figure_table
from benchmarks.reliability.cloud_disk import fill_disk
from benchmarks.reliability.cloud_kills import kill_servers
from benchmarks.reliability.cloud_overload import OverloadConfig, overload
from benchmarks.reliability.cloud_start import StartConfig, start_servers
from benchmarks.reliability.cloud_store import StoreKillConfig, kill_store
from benchmarks.reliability.parts import Part, cell, headline_table

__all__ = ["EVENTS", "HEADLINES", "ITEMS", "KILLS", "MINUTES", "PARTS", "print_cloud"]

KILLS = 200
"""Default number of servers and workers to kill."""
MINUTES = 10.0
"""Default minutes of overload."""
ITEMS = OverloadConfig.items
"""Default number of items in the catalogue."""
EVENTS = StartConfig.events
"""Default number of events in the log of a start."""


PARTS = {
    "overload": Part(
        "asking for twice the pages that can be made",
        lambda work, options, update: overload(
            work, options.seed, update, OverloadConfig(seconds=60 * options.minutes, items=options.items)
        ),
    ),
    "kills": Part(
        "killing servers under feedback",
        lambda work, options, update: kill_servers(work, options.kills, options.seed, update),
        key="kills_under_load",  # `kills` is the number of kills
    ),
    "store": Part(
        "killing the embedding store",
        lambda work, options, update: kill_store(work, options.seed, update, StoreKillConfig(items=options.items)),
        own=("kills",),
    ),
    "disk": Part("filling the disk", lambda work, options, update: fill_disk(work, options.seed, update)),
    "start": Part(
        "starting on a long feedback log",
        lambda work, options, update: start_servers(work, options.seed, update, StartConfig(events=options.events)),
    ),
}
HEADLINES = ("unexpected_5xx", "memory_growth", "recovery_s", "kills", "events_lost", "events_twice")
"""Figures that the report begins with."""


def print_cloud(console: Console, report: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    table = headline_table("The cloud under overload, kills and faults", HEADLINES, report)
    for part, names in (
        ("overload", ("capacity_rps", "offered_rps", "goodput_rps", "whole_rps")),
        ("kills_under_load", ("events_acknowledged", "batches", "resent", "effects_seen")),
        ("store", ("kills", "unexpected_5xx", "vectors_s")),
        ("disk", ("refused", "events_lost", "refused_without_retry_after", "taken_again_s")),
    ):
        for name in names if part in report else ():
            table.add_row(f"{part}.{name}", cell(report[part][name]))
    for kind in ("empty", "replay", "snapshot") if "start" in report else ():
        for name, value in report["start"][kind].items():
            table.add_row(f"start.{kind}.{name}", cell(value))
    for name, value in report["start"]["stall"].items() if "start" in report else ():
        table.add_row(f"start.stall.{name}", cell(value))
    console.print(table)
    title = "Pages, and the share of them in which something is missing"
    table = figure_table(title, "pages", "p50 ms", "p99 ms", "whole", "price")
    table.add_column("degraded")
    for part, times in (
        ("overload", ("before", "overload", "after")),
        ("store", ("before", "away", "after")),
        ("disk", ("pages_while_full",)),
    ):
        for time in times if part in report else ():
            row = report[part][time]
            lacks = ", ".join(f"{reason} {share:.3f}" for reason, share in row.get("degraded_share", {}).items())
            cells = (cell(row.get(name)) for name in ("pages", "p50_ms", "p99_ms", "whole_share", "price"))
            table.add_row(f"{part}: {time}", *cells, lacks)
    if table.row_count:
        console.print(table)
    if "overload" in report:
        table = figure_table("Overload by time", "pages", "p50 ms", "p99 ms", "whole", "price", "MB", label="from s")
        for row in report["overload"]["series"]:
            cells = (cell(row.get(name)) for name in ("from_s", "pages", "p50_ms", "p99_ms", "whole_share", "price"))
            table.add_row(*cells, cell(row["memory"] / 1e6))
        console.print(table)
