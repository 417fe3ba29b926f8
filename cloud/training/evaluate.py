"""How well each model of a run orders the rows that no model ever saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.training.metrics import MetricError, over_seeds, ranking_metrics
from pocketrank.cloud.training.run import Run, RunError

__all__ = ["MODELS", "evaluate"]

MODELS = ("server_score", "no_feedback", "self_contained", "split")
"""The full ranker's score at request time, the device model without feedback, and its two forms."""


def evaluate(folder: Path) -> dict[str, Any]:
    """Metrics of a run's models on its test rows, as mean and spread (standard deviation, n - 1) over seeds.

    `models.<model>.<task>` holds what `pocketrank.cloud.training.metrics.over_seeds` gives: `{auc,gauc,ndcg,logloss}`, each
    with its `_std`, `ece` and `predicted_over_observed`; null is what the test days do not say, such as the AUC of a task with
    one label only. All predict the same rows, right after they were trained. Raises `RunError`.
    """
    run = Run.open(folder)
    tasks = run.record.spec.tasks
    models = [model for model in MODELS if (run.seed_folder() / f"{model}.npy").exists()]
    if not models:
        raise RunError(f"Expected the predictions of {', '.join(MODELS)}, got none - at {run.seed_folder()}. Train again.")
    seeds = [_Rows(run.seed_folder(seed), len(tasks)) for seed in run.record.seeds]
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


class _Rows:
    """The test rows of one seed."""

    def __init__(self, folder: Path, tasks: int) -> None:
        self.folder = folder
        self.labels = _read(folder / "labels.npy", "float", (None, tasks))
        self.users = _read(folder / "users.npy", "int", (len(self.labels),))
        self.lists = _read(folder / "lists.npy", "int", (len(self.labels),))

    def metrics(self, model: str) -> list[dict[str, float | None]]:
        """One dict a task."""
        path = self.folder / f"{model}.npy"
        scores = _read(path, "float", self.labels.shape)
        try:
            return [ranking_metrics(y, p, self.users, self.lists) for y, p in zip(self.labels.T, scores.T, strict=True)]
        except MetricError as error:
            raise RunError(f"{error} of {path}") from error


def _read(path: Path, kind: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise RunError(f"Expected {path.name} of the test rows, got none: an old run - at {path}. Train again.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"Expected the predictions of a finished run, got: {error} - at {path}") from error
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if not fits or not array.dtype.name.startswith(kind):
        expected = ", ".join("rows" if want is None else str(want) for want in shape)
        raise RunError(f"Expected {kind} [{expected}], got {array.dtype} {list(array.shape)} - at {path}")
    return array
