"""Comparison of two runs on the same test rows, with paired intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pocketrank.cloud.training.bootstrap import ResampledMetrics, drawn_users
from pocketrank.cloud.training.evaluate import TestRows, evaluate
from pocketrank.cloud.training.metrics import SPREAD, Double
from pocketrank.cloud.training.run import Run, RunError

__all__ = ["METHOD", "compare"]

RESAMPLES = 1000
"""Resamples; 25 of them are beyond each end of a 95 % interval."""
METHOD = (
    "95 % percentile bootstrap (Efron and Tibshirani 1993, chapter 13), resampled over users, the same for both runs, and over "
    "each run's trainings (the pigeonhole bootstrap: Owen 2007)"
)
"""Method of the intervals. A run with one seed has one training, and the interval does not cover chance in its training."""


def compare(folder: Path, other: Path, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Return the metrics of the runs `a` at `folder` and `b` at `other`, and the differences b - a with paired intervals.

    `runs.a` and `runs.b` hold `folder`, `seeds`, `split_version` and the `models` that the other run does not have.
    `models.<model>.<task>.a` and `.b` are as in `pocketrank.cloud.training.evaluate.evaluate`, and `.difference` holds for each
    metric in `SPREAD` its `mean` and `ci95`, by `METHOD`; null where the test rows do not define it. `interval` says how they
    were made: `method`, `resamples`, `seed` and the number of test `users`.

    Raises `RunError` also when the runs have not the same data, tasks and test rows, or no model in common.
    """
    runs, folders = {"a": Run.open(folder), "b": Run.open(other)}, {"a": folder, "b": other}
    for name in ("data_digest", "test_from"):
        first, second = (getattr(run.record, name) for run in runs.values())
        if first != second:
            raise RunError(f"Expected runs of the same data and test days, got {name} {first} and {second} - at {other}")
    tasks = runs["a"].spec.tasks
    if runs["b"].spec.tasks != tasks:
        raise RunError(f"Expected runs of the tasks {', '.join(tasks)}, got {', '.join(runs['b'].spec.tasks)} - at {other}")
    reports = {name: evaluate(path) for name, path in folders.items()}
    rows = {name: [TestRows(run.seed_folder(number), len(tasks)) for number in run.record.seeds] for name, run in runs.items()}
    reference = rows["a"][0]
    for each in (*rows["a"], *rows["b"]):
        if not each.same_rows(reference):
            raise RunError(f"Expected the test rows of {reference.folder}, got other rows, users or lists - at {each.folder}")
    models = [model for model in reports["a"]["models"] if model in reports["b"]["models"]]
    if not models:
        had, has = (", ".join(report["models"]) for report in reports.values())
        raise RunError(f"Expected a model that both runs have, got {had} and {has} - at {other}")

    users = len(np.unique(reference.users))
    draws = _Draws(rows, models, resamples, seed)
    return {
        "data": reports["a"]["data"],
        "runs": {
            name: {
                "folder": folders[name].as_posix(),
                "seeds": reports[name]["seeds"],
                "split_version": run.record.split_version,
                "models": [model for model in reports[name]["models"] if model not in models],
            }
            for name, run in runs.items()
        },
        "interval": {"method": METHOD, "resamples": resamples, "seed": seed, "users": users},
        "models": {
            model: {
                task: {
                    **{name: reports[name]["models"][model][task] for name in runs},
                    "difference": draws.difference(model, i),
                }
                for i, task in enumerate(tasks)
            }
            for model in models
        },
    }


class _Draws:
    """Metrics of every model and task of two runs in all resamples."""

    def __init__(self, rows: dict[str, list[TestRows]], models: list[str], resamples: int, seed: int) -> None:
        same = rows["a"][0]
        every_user, user = np.unique(same.users, return_inverse=True)
        _, first_row, lists = np.unique(same.lists, return_index=True, return_inverse=True)
        users, list_user = len(every_user), user[first_row]
        prepared = {
            (name, model, task): [
                ResampledMetrics(same.labels[:, task], each.scores(model)[:, task], user, lists, list_user, users)
                for each in seeds
            ]
            for name, seeds in rows.items()
            for model in models
            for task in range(seeds[0].labels.shape[1])
        }
        chunks: dict[tuple[str, str, int], list[Double]] = {key: [] for key in prepared}
        for drawn in drawn_users(users, resamples, seed):
            for key, seeds in prepared.items():
                chunks[key].append(np.stack([metrics.of(drawn) for metrics in seeds]))
        # Mean over the trainings that a resample drew; the first column is of all users and trainings, each once.
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0x5EED])))
        drawn_trainings = {
            name: np.vstack([np.ones(len(seeds)), rng.multinomial(len(seeds), [1 / len(seeds)] * len(seeds), size=resamples)])
            for name, seeds in rows.items()
        }
        self._values = {
            key: np.einsum("smr,rs->mr", np.concatenate(parts, axis=2), drawn_trainings[key[0]]) / len(prepared[key])
            for key, parts in chunks.items()
        }

    def difference(self, model: str, task: int) -> dict[str, Any]:
        """Return b - a of each metric as `{mean, ci95}`, null where it is not defined."""
        values = self._values["b", model, task] - self._values["a", model, task]
        out: dict[str, Any] = {}
        for name, (whole, *rest) in zip(SPREAD, values, strict=True):
            known = np.array(rest)[np.isfinite(rest)]
            ends = np.quantile(known, (0.025, 0.975)).tolist() if len(known) else None
            out[name] = {"mean": float(whole), "ci95": ends} if np.isfinite(whole) else None
        return out
