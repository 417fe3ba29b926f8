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
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from benchmarks.command import figure_table
from benchmarks.reliability.cloud_disk import fill_disk
from benchmarks.reliability.cloud_kills import kill_servers
from benchmarks.reliability.cloud_overload import OverloadConfig, overload
from benchmarks.reliability.cloud_store import StoreKillConfig, kill_store
from pocketrank.sdk_demo.cli.output import progress

__all__ = ["ITEMS", "KILLS", "MINUTES", "PARTS", "CloudExtent", "measure_cloud", "print_cloud"]

KILLS = 200
"""Default number of servers and workers to kill."""
MINUTES = 10.0
"""Default minutes of overload."""
ITEMS = OverloadConfig.items
"""Default number of items in the catalogue."""
PARTS = {
    "overload": "asking for twice the pages that can be made",
    "kills": "killing servers under feedback",
    "store": "killing the embedding store",
    "disk": "filling the disk",
}
"""Parts of the benchmark, and the text of their progress bars."""
_KEYS = {"kills": "kills_under_load"}
"""Keys of parts in the report that differ from the part's name: `kills` is the number of kills."""
_SUMS = ("unexpected_5xx", "events_lost", "events_twice")
_HEADLINES = ("unexpected_5xx", "memory_growth", "recovery_s", "kills", "events_lost", "events_twice")


@dataclass(frozen=True)
class CloudExtent:
    """Extent of the measurement."""

    minutes: float = MINUTES
    """Minutes of overload."""
    kills: int = KILLS
    """Number of servers and workers to kill."""
    items: int = ITEMS
    """Items in the catalogue under overload and in the store."""
    seed: int = 0
    """Seed of the load and of the moments of kills."""


def measure_cloud(parts: Sequence[str], extent: CloudExtent, console: Console) -> dict[str, Any]:
    """Measure `parts` of `PARTS` and return the report, headlines first. Raises `BenchmarkError`."""
    found: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        if part in parts:
            with TemporaryDirectory(prefix="pocketrank-") as work, progress(console, PARTS[part]) as update:
                found[part] = _measure(part, Path(work), extent, update)
    headlines: dict[str, Any] = {}
    for name in _HEADLINES:
        if name in _SUMS:
            if values := [figures[name] for figures in found.values() if name in figures]:
                headlines[name] = sum(values)
        elif (source := "kills" if name == "kills" else "overload") in found:
            headlines[name] = found[source][name]
    return headlines | {_KEYS.get(part, part): figures for part, figures in found.items()}


def _measure(part: str, work: Path, extent: CloudExtent, update: Callable[[float], None]) -> dict[str, Any]:
    match part:
        case "overload":
            return overload(work, extent.seed, update, OverloadConfig(seconds=60 * extent.minutes, items=extent.items))
        case "kills":
            return kill_servers(work, extent.kills, extent.seed, update)
        case "store":
            return kill_store(work, extent.seed, update, StoreKillConfig(items=extent.items))
        case _:
            return fill_disk(work, extent.seed, update)


def print_cloud(console: Console, report: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    table = figure_table("The cloud under overload, kills and faults", "")
    for name in _HEADLINES:
        if name in report:
            table.add_row(name.replace("_", " "), _cell(report[name]))
    for part, names in (
        ("overload", ("capacity_rps", "offered_rps", "goodput_rps", "whole_rps")),
        ("kills_under_load", ("events_acknowledged", "batches", "resent", "effects_seen")),
        ("store", ("kills", "unexpected_5xx", "vectors_s")),
        ("disk", ("refused", "events_lost", "refused_without_retry_after", "taken_again_s")),
    ):
        for name in names if part in report else ():
            table.add_row(f"{part}.{name}", _cell(report[part][name]))
    console.print(table)
    _print_pages(console, report)
    if "overload" in report:
        table = figure_table("Overload by time", "pages", "p50 ms", "p99 ms", "whole", "price", "MB", label="from s")
        for row in report["overload"]["series"]:
            cells = [_cell(row.get(name)) for name in ("from_s", "pages", "p50_ms", "p99_ms", "whole_share", "price")]
            table.add_row(*cells, _cell(row["memory"] / 1e6))
        console.print(table)


def _print_pages(console: Console, report: Mapping[str, Any]) -> None:
    times = [
        (f"{part}: {when}", report[part][when])
        for part, whens in (
            ("overload", ("before", "overload", "after")),
            ("store", ("before", "away", "after")),
            ("disk", ("pages_while_full",)),
        )
        if part in report
        for when in whens
    ]
    if not times:
        return
    title = "Pages, and the share of them in which something is missing"
    table = figure_table(title, "pages", "p50 ms", "p99 ms", "whole", "price")
    table.add_column("degraded")
    for name, row in times:
        lacks = ", ".join(f"{reason} {share:.3f}" for reason, share in row.get("degraded_share", {}).items())
        table.add_row(name, *(_cell(row.get(n)) for n in ("pages", "p50_ms", "p99_ms", "whole_share", "price")), lacks)
    console.print(table)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "none" if value is None else str(value)
