"""How well each model of a run orders the rows that no model ever saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

from cloud.training.run import Run, RunError

__all__ = ["MODELS", "evaluate"]

MODELS = ("server_score", "no_feedback", "self_contained", "split")
"""The full ranker's score at request time, the device model without feedback, and its two forms."""


def evaluate(folder: Path) -> dict[str, Any]:
    """Metrics of a run's models on its test rows, as mean and spread (standard deviation, n - 1) over seeds.

    `models.<model>.<task>.{auc,auc_std,logloss}`; a task without both labels on the test days is null. All predict
    the same rows, right after they were trained. Raises `RunError`.
    """
    run = Run.open(folder)
    tasks = run.record.spec.tasks
    report: dict[str, Any] = {
        "data": {
            "name": run.record.data,
            "simulated": run.record.simulated,
            "digest": run.record.data_digest,
            "test_from": run.record.test_from,
        },
        "seeds": list(run.record.seeds),
        "models": {},
    }
    for model in MODELS:
        if not (run.seed_folder() / f"{model}.npy").exists():
            continue
        by_seed = [_metrics(run.seed_folder(s), model, len(tasks)) for s in run.record.seeds]
        report["models"][model] = {
            task: {
                "auc": _mean([m[k][0] for m in by_seed]),
                "auc_std": _spread([m[k][0] for m in by_seed]),
                "logloss": _mean([m[k][1] for m in by_seed]),
            }
            for k, task in enumerate(tasks)
        }
        report["data"]["test_rows"] = len(_read(run.seed_folder() / "labels.npy"))
    return report


def _metrics(folder: Path, model: str, tasks: int) -> list[tuple[float | None, float | None]]:
    labels, scores = _read(folder / "labels.npy"), _read(folder / f"{model}.npy")
    out: list[tuple[float | None, float | None]] = []
    for k in range(tasks):
        known = ~np.isnan(labels[:, k])
        y, p = labels[known, k], scores[known, k].astype(np.float64)
        both = 0 < y.sum() < len(y)
        out.append((float(roc_auc_score(y, p)), float(log_loss(y, p))) if both else (None, None))
    return out


def _read(path: Path) -> NDArray[np.float32]:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise RunError(f"Expected the predictions of a finished run, got: {error} - at {path}") from error


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _spread(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None
