"""Gate of reduced precisions: a model is only shipped if it ranks the run's test rows as well as torch.

The largest difference of a score says little about the order that a quantised model gives, so fp16 and int8 have no tolerance.
Two metrics are gated: the loss of AUC of any task, and the share of lists whose best item by the weighted scores, the one that
would be shown next, is the same as torch's.

The rows are in `RUN/published/gate.npz`: the model's inputs by name, rows first, where candidate 0 of each row is the item that
was shown, and `labels` [rows, tasks], NaN where unknown. A list is made of the candidates of several rows, for one row's user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.training.run import Run
from pocketrank.export.errors import GateError
from pocketrank.export.graphs import Graph, input_shapes
from pocketrank.export.parity import Scorer

__all__ = ["AGREEMENT_MIN", "AUC_LOSS_MAX", "GATE_FILE", "LABELS_MIN", "GateRows", "auc_by_task", "passes", "ranking_loss"]

GATE_FILE = "gate.npz"
"""Name of the file in the run's folder `published`."""
AUC_LOSS_MAX = 0.002
"""Largest loss of AUC of any task that a reduced precision may have."""
AGREEMENT_MIN = 0.95
"""Smallest share of lists for which a reduced precision must have the same best item as torch."""
LIST_SIZE = 10
"""Candidates of a list of test rows; fewer if the spec allows fewer."""
LABELS_MIN = 20
"""A task with fewer rows of either label is not gated, since its AUC is too noisy, unless there is no other task."""


@dataclass(frozen=True)
class GateRows:
    """Test rows: `inputs` by name [rows, ...] and `labels` [rows, tasks], NaN where unknown."""

    inputs: dict[str, NDArray[Any]]
    labels: NDArray[np.float32]

    @classmethod
    def read(cls, run: Run) -> GateRows:
        """Read the run's rows. Raises `GateError` for no rows, other shapes, or rows without a task that has both labels."""
        path, spec = run.published / GATE_FILE, run.spec
        if not path.is_file():
            raise GateError(str(path), "test rows to gate reduced precisions on (`pocketrank train` writes them)", "none")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, BadZipFile) as error:
            raise GateError(str(path), "a .npz archive", str(error)) from error
        labels = np.asarray(_array(arrays, "labels", path), np.float32)
        if labels.ndim != 2 or labels.shape[1] != len(spec.tasks):
            raise GateError(f"{path}, `labels`", f"[rows, {len(spec.tasks)}]", f"{list(labels.shape)}")
        n, t = _array(arrays, "candidate_mask", path).shape[1], _array(arrays, "event_mask", path).shape[1]
        if n > spec.candidates_max or t > spec.events_max:
            raise GateError(str(path), f"at most {spec.candidates_max} candidates and {spec.events_max} events", f"{n} and {t}")
        inputs = {}
        for name, shape in input_shapes(spec, "split", n, t).items():
            value = _array(arrays, name, path)
            if value.shape != (len(labels), *shape[1:]):
                raise GateError(f"{path}, `{name}`", f"{[len(labels), *shape[1:]]}", f"{list(value.shape)}")
            inputs[name] = value.astype(np.int32 if name.endswith("category") else np.float32)
        rows = cls(inputs, labels)
        if not auc_by_task(labels, np.zeros_like(labels), spec.tasks):
            raise GateError(f"{path}, `labels`", "a task with both labels", "none")
        return rows

    def scores(self, score: Scorer) -> NDArray[np.float32]:
        """Return the scores [rows, tasks] of candidate 0, from one run for each row, as on a device."""
        rows = range(len(self.labels))
        return np.stack([score({name: v[i : i + 1] for name, v in self.inputs.items()})[0, 0] for i in rows])

    def lists(self, size: int, seed: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield inputs of lists of `size` shown items, each row in one list, for the user and time of its first row."""
        rows = np.random.default_rng(seed).permutation(len(self.labels))
        for i in range(0, len(rows) - size + 1, size):
            chosen = rows[i : i + size]
            yield {
                name: value[None, chosen, 0] if name.startswith("candidate") else value[chosen[:1]]
                for name, value in self.inputs.items()
            }


def _array(arrays: dict[str, NDArray[Any]], name: str, path: Path) -> NDArray[Any]:
    if name not in arrays or (name.endswith("mask") and arrays[name].ndim != 2):
        raise GateError(f"{path}, `{name}`", "an array", "none" if name not in arrays else f"{arrays[name].ndim} axes")
    return arrays[name]


def auc_by_task(labels: NDArray[np.float32], scores: NDArray[np.float32], tasks: Sequence[str]) -> dict[str, float]:
    """Return the area under the ROC curve of each task that has rows of both labels. Ties count half."""
    from sklearn.metrics import roc_auc_score

    found = {}
    for i, task in enumerate(tasks):
        known = np.isfinite(labels[:, i])
        if len(np.unique(labels[known, i])) == 2:
            found[task] = float(roc_auc_score(labels[known, i], scores[known, i]))
    return found


def ranking_loss(graph: Graph, rows: GateRows, score: Scorer) -> dict[str, Any]:
    """Return how much worse than torch the model behind `score` ranks.

    `loss` is the largest loss of AUC among the tasks in `gated`, `order_agreement` the share of lists with the same best item.
    `limit` and `order_limit` are their limits (`passes`); `auc` and `torch_auc` are the AUCs by task.
    """
    # AUC by task of both, and the tasks with enough rows of either label.
    tasks = graph.spec.tasks
    model = auc_by_task(rows.labels, rows.scores(score), tasks)
    torch = auc_by_task(rows.labels, graph.scores(rows.inputs)[:, 0], tasks)
    fewest = {task: min((rows.labels[:, i] == label).sum() for label in (0, 1)) for i, task in enumerate(tasks)}
    gated = [task for task in torch if fewest[task] >= LABELS_MIN] or list(torch)
    # The best item of each list by the weighted scores, of both.
    weights = np.array([graph.spec.task_weights.get(task, 0.0) for task in tasks], np.float32)
    size = min(LIST_SIZE, graph.spec.candidates_max, len(rows.labels))
    best = [[int((answer(x)[0] @ weights).argmax()) for answer in (score, graph.scores)] for x in rows.lists(size)]
    return {
        "loss": max(torch[task] - model[task] for task in gated),
        "limit": AUC_LOSS_MAX,
        "order_agreement": float(np.mean([ours == theirs for ours, theirs in best])),
        "order_limit": AGREEMENT_MIN,
        "gated": gated,
        "auc": model,
        "torch_auc": torch,
    }


def passes(gate: Mapping[str, Any]) -> bool:
    """Return whether a result of `ranking_loss` is within its limits."""
    return bool(gate["loss"] <= gate["limit"] and gate["order_agreement"] >= gate["order_limit"])
