"""Prints the report of an emulation: a table of policies with intervals, gains, latencies and fallbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pocketrank.sdk_demo.cli.output import print_line

__all__ = ["print_emulation"]

_FIGURES = {
    "effective_views_per_session": 2,
    "likes_per_session": 2,
    "watch_s_per_session": 0,
    "items_per_session": 1,
    "requests_per_session": 2,
}
"""Figures in the table, and their digits."""
_NOT_FALLBACKS = frozenset({"pages", "reranks", "events"})


def print_emulation(console: Console, report: Mapping[str, Any], latency: Mapping[str, Any]) -> None:
    """Print `report`, that of `pocketrank.sdk_demo.emulator.emulate`, and its `latency_ms`."""
    table = Table(
        title=f"{_users(report)}, per session ({report['sessions']} for each policy)", title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("policy", no_wrap=True)
    for name in _FIGURES:
        table.add_column(name.removesuffix("_per_session").replace("_", " "), justify="right")
    for policy, row in report["policies"].items():
        table.add_row(policy, *(_with_interval(row[name], row[f"{name}_ci95"], d) for name, d in _FIGURES.items()))
    console.print(table)
    for policy, gains in report["gain"].items():
        gain = gains["effective_views_per_session"]
        print_line(console, f"{policy} over cloud_order, effective views: {_mean_with_interval(gain, 2, sign='+')}")
    if report["uplift_share"] is not None:
        print_line(
            console, f"share of the oracle's uplift captured on the device: {_mean_with_interval(report['uplift_share'], 2)}"
        )
    for name, label in (("rerank", "reordering at a swipe"), ("page", "page over HTTP")):
        if latency[f"{name}_p50"] is not None:
            print_line(console, f"{label}: p50 {latency[f'{name}_p50']:.2f} ms, p99 {latency[f'{name}_p99']:.2f} ms")
    for policy, counters in report["counters"].items():
        taken = {name: count for name, count in counters.items() if count and name not in _NOT_FALLBACKS}
        if policy == "oracle":
            taken.pop("shown_elsewhere", None)  # the oracle shows every item outside of the feed's order
        if taken:
            print_line(console, f"fallbacks, {policy}: " + ", ".join(f"{name} {count}" for name, count in taken.items()))


def _users(report: Mapping[str, Any]) -> str:
    drawn = report.get("responses", "simulated")
    return "simulated users" if drawn == "simulated" else f"users of the log, responses {drawn}"


def _with_interval(value: float, ends: Sequence[float] | None, digits: int) -> str:
    text = f"{value:.{digits}f}"
    if ends is not None:
        # One digit fewer where numbers are wide, so that the table fits into 80 columns.
        fewer = digits - 1 if digits > 1 and abs(ends[1]) >= 10 else digits
        text += f"\n{ends[0]:.{fewer}f}..{ends[1]:.{fewer}f}"
    return text


def _mean_with_interval(figure: Mapping[str, Any], digits: int, sign: str = "") -> str:
    ends = figure["ci95"]
    interval = "" if ends is None else f" (95 % interval {ends[0]:{sign}.{digits}f} to {ends[1]:{sign}.{digits}f})"
    return f"{figure['mean']:{sign}.{digits}f}{interval}"
