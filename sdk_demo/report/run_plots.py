"""Plots of a run's report, as SVG text to embed in an HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pocketrank.sdk_demo.report.plots import MODELS, svg

__all__ = ["auc_by_group", "auc_by_seed", "calibration", "curve"]

_STYLES = {
    "server_score": ("#6b7280", "--"),
    "no_feedback": ("#d97706", ":"),
    "self_contained": ("#0d9488", "-."),
    "split": ("#2563eb", "-"),
}  # distinct without colour as well
_SEEDS = ("-", "--", ":", "-.")
_COLOR = "#2563eb"
_UPRIGHT_MAX = 6
"""Labels of groups that fit beside one another."""


def auc_by_seed(by_seed: Mapping[str, Any], task: str) -> str:
    """Plot the mean AUC of each model for one task, and a dot for each seed."""
    known = {model: tasks[task] for model, tasks in by_seed.items() if None not in tasks[task]}

    def draw(axes: Axes) -> None:
        means = [float(np.mean(values)) for values in known.values()]
        axes.barh([MODELS[model] for model in known], means, color=_COLOR, alpha=0.6, height=0.55)
        for row, (mean, values) in enumerate(zip(means, known.values(), strict=True)):
            axes.plot(values, [row] * len(values), "o", color="#1e3a8a", markersize=4)
            axes.annotate(f"{mean:.4f}", (max(values), row), (8, 0), textcoords="offset points", va="center")
        every = [value for values in known.values() for value in values]
        axes.invert_yaxis()
        axes.set_xlim(min([0.5, *(value - 0.02 for value in every)]), max([0.55, *every]) + 0.04)
        axes.set(xlabel="AUC (0.5 = chance); a dot is a seed")

    return svg(draw, f"AUC of {task}")


def calibration(figures: Mapping[str, Any], task: str) -> str:
    """Plot the observed rate against the mean score, a line for each model."""

    def draw(axes: Axes) -> None:
        ends: list[float] = []
        for model, tasks in figures.items():
            predicted, observed = tasks[task]["predicted"], tasks[task]["observed"]
            color, style = _STYLES[model]
            axes.plot(predicted, observed, style, marker=".", color=color, label=MODELS[model], linewidth=1.5)
            ends = [*ends, *predicted, *observed]
        if ends:  # where the two are equal
            axes.axline((min(ends), min(ends)), (max(ends), max(ends)), color="#9ca3af", linewidth=0.8)
        axes.set(xlabel="mean score", ylabel="observed rate")
        axes.legend(frameon=False)

    return svg(draw, f"Calibration of {task}")


def auc_by_group(groups: Sequence[Mapping[str, Any]], models: Sequence[str], task: str, what: str) -> str:
    """Plot the AUC of each model by group of rows, and the groups' shares of the rows below."""

    def draw(axes: Axes) -> None:
        places = range(len(groups))
        for model in models:
            values = [group["auc"][model][task] for group in groups]
            color, style = _STYLES[model]
            axes.plot(
                places, [np.nan if value is None else value for value in values], style, marker=".", color=color,
                label=MODELS[model], linewidth=1.5,
            )  # fmt: skip
        turned = 45 if len(groups) > _UPRIGHT_MAX else 0
        axes.set_xticks(places, [f"{group['name']}\n{group['rows']:,}" for group in groups], fontsize=7, rotation=turned)
        axes.set(xlabel=f"{what}, and rows", ylabel="AUC")
        axes.legend(frameon=False)

    return svg(draw, f"AUC of {task} by {what}")


def curve(seeds: Mapping[str, Any], title: str, what: str) -> str:
    """Plot one training curve, a line for each seed."""

    def draw(axes: Axes) -> None:
        for i, (seed, points) in enumerate(seeds.items()):
            style = _SEEDS[i % len(_SEEDS)]
            marker = "." if len(points["steps"]) < 20 else ""
            axes.plot(
                points["steps"], points["values"], style, marker=marker, color=_COLOR, label=f"seed {seed}", linewidth=1.2
            )
        axes.set(xlabel="step", ylabel=what)
        axes.legend(frameon=False)

    return svg(draw, title)
