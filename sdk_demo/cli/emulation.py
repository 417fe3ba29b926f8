"""An emulation's report on the terminal: a table of policies with intervals, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

__all__ = ["print_emulation"]

_FIGURES = {
    "effective_views_per_session": 2,
    "likes_per_session": 2,
    "watch_s_per_session": 0,
    "items_per_session": 1,
    "requests_per_session": 2,
}
"""Figures shown, and their digits."""
_NO_FALLBACK = frozenset({"pages", "reranks", "events"})


def print_emulation(console: Console, report: Mapping[str, Any], latency: Mapping[str, Any]) -> None:
    """Print the report of `pocketrank.sdk_demo.emulator.emulate`, whose latencies are given apart."""
    table = Table(
        title=f"simulated users, per session ({report['sessions']} for each policy)", title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("policy", no_wrap=True)
    for name in _FIGURES:
        table.add_column(name.removesuffix("_per_session").replace("_", " "), justify="right")
    for policy, row in report["policies"].items():
        table.add_row(policy, *(_with_interval(row[name], row[f"{name}_ci95"], d) for name, d in _FIGURES.items()))
    console.print(table)
    for policy, gains in report["gain"].items():
        gain = gains["effective_views_per_session"]
        _line(console, f"{policy} over cloud_order, effective views: {_between(gain, 2, sign='+')}")
    if report["uplift_share"] is not None:
        _line(console, f"share of the oracle's uplift captured on the device: {_between(report['uplift_share'], 2)}")
    for name, what in (("rerank", "reordering at a swipe"), ("page", "page over HTTP")):
        if latency[f"{name}_p50"] is not None:
            _line(console, f"{what}: p50 {latency[f'{name}_p50']:.2f} ms, p99 {latency[f'{name}_p99']:.2f} ms")
    for policy, counters in report["counters"].items():
        taken = {name: count for name, count in counters.items() if count and name not in _NO_FALLBACK}
        if policy == "oracle":
            taken.pop("shown_elsewhere", None)  # how it shows its choice
        if taken:
            _line(console, f"fallbacks, {policy}: " + ", ".join(f"{name} {count}" for name, count in taken.items()))


def _with_interval(value: float, ends: Sequence[float] | None, digits: int) -> str:
    told = f"{value:.{digits}f}"
    if ends is not None:
        fewer = digits - 1 if digits > 1 and abs(ends[1]) >= 10 else digits  # so that the table fits into 80 columns
        told += f"\n{ends[0]:.{fewer}f}..{ends[1]:.{fewer}f}"
    return told


def _between(figure: Mapping[str, Any], digits: int, sign: str = "") -> str:
    ends = figure["ci95"]
    told = "" if ends is None else f" (95 % interval {ends[0]:{sign}.{digits}f} to {ends[1]:{sign}.{digits}f})"
    return f"{figure['mean']:{sign}.{digits}f}{told}"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
