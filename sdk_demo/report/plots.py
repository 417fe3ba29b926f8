"""Plots of a report, as SVG text to embed in an HTML page."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "LABELS",
    "MODELS",
    "alive",
    "effective_views",
    "histogram",
    "hours",
    "model_auc",
    "rows_per_day",
    "shares",
    "svg",
]

COLORS = {"cloud_order": "#6b7280", "on_device": "#2563eb", "oracle": "#d97706"}
"""Colour of each policy in all plots."""
LABELS = {"cloud_order": "cloud order", "on_device": "on device", "oracle": "oracle"}
"""Name of each policy for readers."""

_STYLES = {"cloud_order": "--", "on_device": "-", "oracle": ":"}  # distinct without colour as well
_INK = "#374151"
MODELS = {"server_score": "server's score", "no_feedback": "no feedback", "self_contained": "self-contained", "split": "split"}
"""Name of each model for readers."""


def effective_views(emulation: Mapping[str, Any]) -> str:
    """Plot the effective views per session up to each position, a line for each policy."""

    def draw(axes: Axes) -> None:
        _lines(axes, emulation, "effective_views_so_far")
        axes.set(xlabel="position in the session", ylabel="effective views so far, per session")

    return svg(draw, "Effective views by position")


def alive(emulation: Mapping[str, Any]) -> str:
    """Plot the share of sessions that reach each position, a line for each policy."""

    def draw(axes: Axes) -> None:
        _lines(axes, emulation, "alive", percent=True)
        axes.set(xlabel="position in the session", ylabel="sessions that reach it, %")
        axes.set_ylim(0, 102)

    return svg(draw, "Sessions that reach each position")


def histogram(latency: Mapping[str, Any], name: str, what: str) -> str:
    """Plot the histogram of the times of `name` (`rerank`, `page`), with median and 99th percentile marked."""
    edges, counts = latency[f"{name}_histogram"]["edges"], latency[f"{name}_histogram"]["counts"]

    def draw(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, color=COLORS["on_device"], alpha=0.85)
        axes.set_xscale("log")
        filled = [i for i, count in enumerate(counts) if count] or [0, len(counts) - 1]
        axes.set_xlim(edges[max(0, filled[0] - 2)], edges[min(len(edges) - 1, filled[-1] + 3)])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(xlabel=f"{what}, ms", ylabel="number")
        for percent, style in ((50, "-"), (99, "--")):
            if (at := latency[f"{name}_p{percent}"]) is not None:
                axes.axvline(at, color=_INK, linestyle=style, linewidth=1.2, label=f"p{percent}: {at:.2f} ms")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)

    return svg(draw, f"Histogram: {what}")


def model_auc(models: Mapping[str, Any], task: str) -> str:
    """Plot the AUC of each model for one task on the held-out days."""
    known = [name for name in models if models[name].get(task, {}).get("auc") is not None]

    def draw(axes: Axes) -> None:
        values = [models[name][task]["auc"] for name in known]
        bars = axes.barh([MODELS.get(name, name) for name in known], values, color=COLORS["on_device"], height=0.55)
        axes.bar_label(bars, fmt="%.3f", padding=4)
        axes.invert_yaxis()
        axes.set_xlim(0.5, max([0.55, *values]) + 0.03)
        axes.set(xlabel=f"AUC, {task.replace('_', ' ')}, held-out days (0.5 = chance)")

    return svg(draw, f"AUC of {task}")


def rows_per_day(days: Mapping[str, int]) -> str:
    """Plot the number of rows of each day, by its date as YYYY-MM-DD; days without any are at 0."""
    first, last = date.fromisoformat(min(days)), date.fromisoformat(max(days))
    dates = [first + timedelta(number) for number in range((last - first).days + 1)]

    def draw(axes: Axes) -> None:
        counts = [days.get(day.isoformat(), 0) for day in dates]
        axes.bar(range(len(dates)), counts, width=1, color=COLORS["on_device"], alpha=0.85)
        places = sorted({0, len(dates) // 2, len(dates) - 1})
        axes.set_xticks(places, [dates[place].isoformat() for place in places])
        axes.set(ylabel="rows")

    return svg(draw, "Rows by day")


def hours(counts: Sequence[int]) -> str:
    """Plot the number of rows of each hour of the day."""

    def draw(axes: Axes) -> None:
        axes.bar(range(24), counts, color=COLORS["on_device"], alpha=0.85)
        axes.set_xticks(range(0, 24, 3))
        axes.set(xlabel="hour of the day", ylabel="rows")

    return svg(draw, "Rows by hour of the day")


def shares(values: Mapping[str, float | None], what: str) -> str:
    """Plot shares from 0 to 1 by name."""

    def draw(axes: Axes) -> None:
        known = {name: value or 0.0 for name, value in values.items()}
        bars = axes.barh(list(known), [100 * value for value in known.values()], color=COLORS["on_device"], height=0.55)
        axes.bar_label(bars, fmt="%.3g", padding=4)
        axes.invert_yaxis()
        axes.set_xlim(0, 115)
        axes.set(xlabel=f"{what}, %")

    return svg(draw, what, 1 + 0.25 * len(values))


def _lines(axes: Axes, emulation: Mapping[str, Any], name: str, *, percent: bool = False) -> None:
    for policy, row in emulation["by_position"].items():
        values = [100 * value if percent else value for value in row[name]]
        axes.plot(range(1, len(values) + 1), values, _STYLES[policy], color=COLORS[policy], label=LABELS[policy], linewidth=2)
    axes.set_xlim(left=1)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def svg(draw: Callable[[Axes], None], title: str, height: float = 3.4) -> str:
    """Return the plot that `draw` makes as SVG text. The same figures give the same text."""
    figure = Figure(figsize=(5.4, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    text = io.StringIO()
    # No date, and ids derived from the title, so that the same figures give the same file.
    with rc_context({"svg.hashsalt": title}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    whole = text.getvalue()
    return whole[whole.index("<svg") :].replace("<svg ", '<svg role="img" ', 1)
