"""Metrics of the models of a run on its test rows, which no model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.training.metrics import MetricError, over_seeds, ranking_metrics
from pocketrank.cloud.training.run import Run, RunError

__all__ = ["MODELS", "TestRows", "evaluate"]

MODELS = ("server_score", "no_feedback", "self_contained", "split")
"""Models: the full ranker's score at request time, the device model without feedback, and the device model's two forms."""


def evaluate(folder: Path) -> dict[str, Any]:
    """Return the metrics of a run's models on its test rows: the mean over seeds, and the standard deviation (n - 1).

    `models.<model>.<task>` holds the result of `pocketrank.cloud.training.metrics.over_seeds`: `auc`, `gauc`, `ndcg` and
    `logloss`, each with its `_std`, then `ece` and `predicted_over_observed`. A metric that the test rows do not define is
    null, for example the AUC of a task with one label only. All models predicted the same rows, right after their training.
    Raises `RunError`.
    """
    run = Run.open(folder)
    tasks = run.record.spec.tasks
    models = [model for model in MODELS if (run.seed_folder() / f"{model}.npy").exists()]
    if not models:
        raise RunError(f"Expected the predictions of {', '.join(MODELS)}, got none - at {run.seed_folder()}. Train again.")
    seeds = [TestRows(run.seed_folder(seed), len(tasks)) for seed in run.record.seeds]
    return {
        "data": {
            "name": run.record.data,
            "simulated": run.record.simulated,
            "digest": run.record.data_digest,
            "test_from": run.record.test_from,
            "test_rows": len(seeds[0].labels),
        },
        "seeds": list(run.record.seeds),
        "models": {
            model: dict(zip(tasks, map(over_seeds, zip(*(rows.metrics(model) for rows in seeds), strict=True)), strict=True))
            for model in models
        },
    }


class TestRows:
    """Labels [R, tasks], users [R] and lists [R] of the test rows of one seed, in the folder `folder` of its run.

    Raises `RunError`.
    """

    def __init__(self, folder: Path, tasks: int) -> None:
        self.folder = folder
        self.labels = _read(folder / "labels.npy", "float", (None, tasks))
        self.users = _read(folder / "users.npy", "int", (len(self.labels),))
        self.lists = _read(folder / "lists.npy", "int", (len(self.labels),))

    def scores(self, model: str) -> NDArray[Any]:
        """Return the predictions [R, tasks] of `model`. Raises `RunError`."""
        return _read(self.folder / f"{model}.npy", "float", self.labels.shape)

    def column(self, name: str) -> NDArray[np.integer[Any]] | None:
        """Return the whole numbers [R] of `name`, `days` or `history`; None for a run that did not keep them.

        Raises `RunError`.
        """
        path = self.folder / f"{name}.npy"
        return _read(path, "int", (len(self.labels),)) if path.exists() else None

    def same_rows(self, other: TestRows) -> bool:
        """Return whether `other` has the same labels in the same order, of the same users and lists whatever their numbers."""
        if not np.array_equal(self.labels, other.labels, equal_nan=True):
            return False
        pairs = (self.users, other.users), (self.lists, other.lists)
        return all(np.array_equal(_first_rows(mine), _first_rows(theirs)) for mine, theirs in pairs)

    def metrics(self, model: str) -> list[dict[str, float | None]]:
        """Return the metrics of each task. Raises `RunError`."""
        try:
            return [
                ranking_metrics(y, p, self.users, self.lists) for y, p in zip(self.labels.T, self.scores(model).T, strict=True)
            ]
        except MetricError as error:
            raise RunError(f"{error} of {self.folder / f'{model}.npy'}") from error


def _first_rows(group: NDArray[np.integer[Any]]) -> NDArray[np.intp]:
    """Return for each row the first row of its group."""
    _, first, number = np.unique(group, return_index=True, return_inverse=True)
    rows: NDArray[np.intp] = first[number]
    return rows


def _read(path: Path, kind: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise RunError(f"Expected {path.name} of the test rows, got none - at {path}. Train again.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"Expected the predictions of a finished run, got: {error} - at {path}") from error
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if not fits or not array.dtype.name.startswith(kind):
        expected = ", ".join("rows" if want is None else str(want) for want in shape)
        raise RunError(f"Expected {kind} [{expected}], got {array.dtype} {list(array.shape)} - at {path}")
    return array
