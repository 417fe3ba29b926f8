"""The report of a run as one HTML file without scripts and without external fonts or images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from string import Template
from typing import Any

import msgspec

from pocketrank.cloud.training.run import RunRecord
from pocketrank.sdk_demo.report import run_plots
from pocketrank.sdk_demo.report.html import document, figure, table
from pocketrank.sdk_demo.report.plots import MODELS

__all__ = ["run_page"]

_BODY = Template("""<section class="head">
<h1>Run on $name</h1>
$label
<p class="note">$rows held-out rows from $test_from on, $seeds. No model was trained on them.</p>
</section>
$sections
""")

_METRICS = {
    "auc": "AUC",
    "gauc": "GAUC",
    "ndcg": "nDCG@10",
    "logloss": "log loss",
    "ece": "ECE",
    "predicted_over_observed": "predicted/observed",
}


def run_page(figures: Mapping[str, Any], record: RunRecord, comparison: Mapping[str, Any] | None = None) -> str:
    """Return the page for a run's `breakdown` and its record, with a result of `compare` if there is one."""
    data, seeds = figures["data"], len(figures["seeds"])
    sections = {
        "Metrics": _metrics(figures),
        "Difference from another run": None if comparison is None else _comparison(comparison),
        "Models": _plots(figures, lambda task: run_plots.auc_by_seed(figures["by_seed"], task)),
        "Calibration": _plots(figures, lambda task: run_plots.calibration(figures["calibration"], task)),
        "AUC by day": _by_group(figures, "by_day", "day"),
        "AUC by the user's history": _by_group(figures, "by_history", "earlier events of the user"),
        "Training": _curves(figures["curves"]),
        "Data and configuration": _record(record),
    }
    body = _BODY.substitute(
        name=escape(data["name"]),
        label='<p><span class="label">simulated users</span></p>' if data["simulated"] else "",
        rows=f"{data['test_rows']:,}",
        test_from=escape(data["test_from"]),
        seeds="one seed" if seeds == 1 else f"{seeds} seeds",
        sections="\n".join(f"<h2>{title}</h2>\n{body}" for title, body in sections.items() if body is not None),
    )
    return document(f"run on {data['name']}", body)


def _tasks(figures: Mapping[str, Any]) -> list[str]:
    return list(next(iter(figures["models"].values())))


def _title(task: str) -> str:
    return escape(task.replace("_", " "))


def _metrics(figures: Mapping[str, Any]) -> str:
    seeds = figures["seeds"]
    parts = []
    for task in _tasks(figures):
        rows = [
            [
                escape(MODELS[model]),
                *(_cell(tasks[task][metric], tasks[task].get(f"{metric}_std")) for metric in _METRICS),
                *(_cell(value) for value in figures["by_seed"][model][task]),
            ]
            for model, tasks in figures["models"].items()
        ]
        head = ["model", *_METRICS.values(), *(f"AUC, seed {seed}" for seed in seeds)]
        parts.append(f'<h3>{_title(task)}</h3><div class="wide">{table(head, rows)}</div>')
    note = "Means over seeds, and their standard deviation. GAUC and nDCG treat rows of different moments as one ranking."
    return f'{"".join(parts)}<p class="note">{note}</p>'


def _cell(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.4f}" + ("" if spread is None else f"<br><small>± {spread:.4f}</small>")


def _comparison(report: Mapping[str, Any]) -> str:
    other = escape(report["runs"]["b"]["folder"])
    parts = [f'<p class="note">The other run is {other}. Differences are the other run minus this one.</p>']
    for task in _tasks(report):
        rows = [
            [escape(MODELS[model]), *(_difference(figure) for figure in tasks[task]["difference"].values())]
            for model, tasks in report["models"].items()
        ]
        metrics = next(iter(report["models"].values()))[task]["difference"]
        parts.append(
            f'<h3>{_title(task)}</h3><div class="wide">{table(["model", *(_METRICS[m] for m in metrics)], rows)}</div>'
        )
    method = f"Intervals: {report['interval']['method']}; {report['interval']['users']:,} users."
    return "".join(parts) + f'<p class="note">{escape(method)}</p>'


def _difference(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "n/a"
    low, high = figure["ci95"]
    mark = " *" if low > 0 or high < 0 else ""
    return f"{figure['mean']:+.4f}{mark}<br><small>{low:+.4f} to {high:+.4f}</small>"


def _plots(figures: Mapping[str, Any], plot: Any) -> str:
    """Return a plot for each task whose labels are known, which has an AUC."""
    drawn = [figure(task.replace("_", " "), plot(task)) for task in _tasks(figures) if _is_known(figures, task)]
    return f'<div class="plots">{"".join(drawn)}</div>'


def _is_known(figures: Mapping[str, Any], task: str) -> bool:
    return any(tasks[task]["auc"] is not None for tasks in figures["models"].values())


def _by_group(figures: Mapping[str, Any], name: str, what: str) -> str:
    if figures[name] is None:
        return '<p class="note">This run did not keep what the rows are grouped by. Train again to see it.</p>'
    groups, models = figures[name]["groups"], list(figures["models"])
    return _plots(figures, lambda task: run_plots.auc_by_group(groups, models, task, what))


def _curves(stages: Mapping[str, Any]) -> str:
    if not stages:
        return '<p class="note">This run did not keep its training curves.</p>'
    return "".join(
        f'<h3>{_title(stage)}</h3><div class="plots">{"".join(_stage(stage, curves))}</div>' for stage, curves in stages.items()
    )


def _stage(stage: str, curves: Mapping[str, Any]) -> Iterator[str]:
    for name, seeds in curves.items():
        what = name.replace("validation_auc/", "validation AUC: ").replace("_", " ")
        yield figure(what, run_plots.curve(seeds, f"{stage}: {name}", what.partition(":")[0]))


def _record(record: RunRecord) -> str:
    facts = {
        "digest of the data": record.data_digest,
        "split version": record.split_version,
        "tasks and weights": ", ".join(f"{task} {record.spec.task_weights.get(task, 0):g}" for task in record.spec.tasks),
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
    config = msgspec.json.format(msgspec.json.encode(record.config), indent=2).decode()
    return (
        f'<div class="wide">{table(["", ""], [[escape(name), escape(value)] for name, value in facts.items()])}</div>'
        f"<h3>Configuration</h3><pre>{escape(config)}</pre>"
    )
