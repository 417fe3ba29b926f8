"""The drift of a run's inputs as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pocketrank.sdk_demo.report.html import document, figure, table
from pocketrank.sdk_demo.report.plots import COLORS, svg

__all__ = ["drift_page"]

_NOTE = (
    "PSI is the population stability index: the sum of (q - p) ln(q / p) over the bins of an input, where p are the shares in "
    "training and q those since. Below 0.1 an input is stable, up to 0.25 its change is moderate, and from there on it is "
    "large. Too few: with so few pages the index would be above 0.05 by chance alone. Not counted: the input is not known here."
)


def drift_page(report: Mapping[str, Any]) -> str:
    """Return the page for a report of `pocketrank data drift`."""
    pages, features = report["pages"], report["features"]
    rows = [
        [
            escape(name),
            _text(one["psi"], ".3f"),
            escape(one["verdict"]),
            *_side(one["training"]),
            *_side(one["serving"]),
        ]
        for name, one in features.items()
    ]
    head = ["input", "PSI", "verdict", "training: known", "rows", "since: known", "rows"]
    plots = [
        figure(f"{name}: {one['verdict']}" + ("" if one["psi"] is None else f", PSI {one['psi']:.3f}"), _shares(name, one))
        for name, one in features.items()
        if one["serving"] is not None and one["serving"]["rows"]
    ]
    parts = [
        f'<section class="head"><h1>{escape(report["run"])}</h1><p class="note">Inputs of its models, against '
        f"{escape(report['against'])}: {pages['training']:,} pages of training, {pages['serving']:,} since.</p></section>",
        f'<h2>Drift</h2><p class="note">{escape(_NOTE)}</p><div class="wide">{table(head, rows)}</div>',
        f'<h2>Distributions</h2><div class="plots">{"".join(plots)}</div>',
    ]
    return document(f"drift of {report['run']}", "\n".join(parts))


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _side(side: Mapping[str, Any] | None) -> tuple[str, str]:
    return ("", "") if side is None else (_text(side["coverage"], ".1%"), f"{side['rows']:,}")


def _shares(name: str, one: Mapping[str, Any]) -> str:
    """Plot the shares of an input's bins in training and since."""
    bins: Sequence[str] = one["bins"]

    def draw(axes: Axes) -> None:
        at = np.arange(len(bins))
        for place, side, color in ((-0.2, "training", COLORS["cloud_order"]), (0.2, "serving", COLORS["on_device"])):
            label = "training" if side == "training" else "since"
            axes.barh(at + place, [100 * share for share in one[side]["shares"]], height=0.4, color=color, label=label)
        axes.set_yticks(at, [text if len(text) <= 24 else f"{text[:23]}…" for text in bins], parse_math=False)
        axes.invert_yaxis()
        axes.set(xlabel="values in the bin, %")
        axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))

    return svg(draw, f"Distribution of {name}", 1.2 + 0.27 * len(bins))
