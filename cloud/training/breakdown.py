"""Figures of a run beyond its metrics: by day, by the user's history, calibration, each seed, and the training curves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.training.evaluate import TestRows, evaluate
from pocketrank.cloud.training.metrics import auc, calibration_curve
from pocketrank.cloud.training.run import Run, RunError

__all__ = ["HISTORY_FROM", "breakdown"]

HISTORY_FROM = (0, 1, 10, 30, 100, 300)
"""Numbers of earlier events at which the groups of history lengths begin: none, and then by factors of about three."""
_POINTS_MAX = 200
"""Points of a training curve in a report; those between are averaged."""


class _Point(msgspec.Struct, frozen=True):
    name: str
    step: int
    value: float


def breakdown(folder: Path) -> dict[str, Any]:
    """Return the figures of a run: the result of `evaluate`, and

    - `by_day.groups`, `by_history.groups`: lists of `name`, `rows` and `auc.<model>.<task>`, the mean over seeds, null where it
      is not defined. Both are null for a run that did not keep the columns.
    - `calibration.<model>.<task>`: `predicted`, `observed` and `rows` of bins of equal count, over the rows of all seeds.
    - `by_seed.<model>.<task>`: the AUC of each seed.
    - `curves.<stage>.<curve>`: for each seed its `steps` and `values`; empty for a run that did not keep them.

    Raises `RunError`.
    """
    report, run = evaluate(folder), Run.open(folder)
    tasks, models = run.spec.tasks, list(report["models"])
    seeds = [TestRows(run.seed_folder(seed), len(tasks)) for seed in run.record.seeds]
    scores = {model: [rows.scores(model) for rows in seeds] for model in models}

    def of_each(figure: Callable[[str, int], Any]) -> dict[str, dict[str, Any]]:
        """Return the figure of each model and task."""
        return {model: {task: figure(model, i) for i, task in enumerate(tasks)} for model in models}

    def aucs(model: str, task: int, chosen: NDArray[np.bool_] | slice = slice(None)) -> list[float | None]:
        pairs = zip(seeds, scores[model], strict=True)
        return [auc(rows.labels[chosen, task], values[chosen, task]) for rows, values in pairs]

    def groups(column: str, number: Callable[[NDArray[Any]], NDArray[Any]], name: Callable[[int], str]) -> Any:
        values = seeds[0].column(column)
        if values is None:
            return None
        numbers = number(values)

        def group(each: int) -> dict[str, Any]:
            chosen = numbers == each
            mean_auc = of_each(lambda model, task: _mean(aucs(model, task, chosen)))
            return {"name": name(each), "rows": int(chosen.sum()), "auc": mean_auc}

        return {"groups": [group(each) for each in np.unique(numbers).tolist()]}

    def calibration(model: str, task: int) -> dict[str, Any]:
        labels = np.concatenate([rows.labels[:, task] for rows in seeds])
        predicted, observed, rows = calibration_curve(labels, np.concatenate([values[:, task] for values in scores[model]]))
        return {"predicted": predicted.tolist(), "observed": observed.tolist(), "rows": rows.tolist()}

    return {
        **report,
        "by_day": groups("days", lambda days: days, lambda day: (date(1970, 1, 1) + timedelta(day)).isoformat()),
        "by_history": groups("history", lambda n: np.searchsorted(HISTORY_FROM, n, "right") - 1, _history_name),
        "calibration": of_each(calibration),
        "by_seed": of_each(aucs),
        "curves": _curves(run),
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _history_name(group: int) -> str:
    first, *after = HISTORY_FROM[group:]
    if not after:
        return f"{first} or more"
    return str(first) if after[0] == first + 1 else f"{first} to {after[0] - 1}"


def _curves(run: Run) -> dict[str, dict[str, Any]]:
    curves: dict[str, dict[str, Any]] = {}
    for seed in run.record.seeds:
        path = run.seed_folder(seed) / "curves.json"
        if not path.exists():
            continue
        try:
            points = msgspec.json.decode(path.read_bytes(), type=list[_Point])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RunError(f"Expected training curves, got: {error} - at {path}") from error
        named: dict[str, list[_Point]] = {}
        for point in points:
            named.setdefault(point.name, []).append(point)
        for name, found in named.items():
            stage, _, curve = name.partition("/")
            curves.setdefault(stage, {}).setdefault(curve, {})[str(seed)] = _thinned(found)
    return curves


def _thinned(points: list[_Point]) -> dict[str, list[float]]:
    parts = np.array_split(np.array([[point.step, point.value] for point in points]), min(len(points), _POINTS_MAX))
    means = np.array([part.mean(axis=0) for part in parts])
    return {"steps": means[:, 0].tolist(), "values": means[:, 1].tolist()}
