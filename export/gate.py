"""Reduced precisions are shipped only when they rank as well: what they lose on the run's test rows is gated.

The largest difference of a score says little about how a quantised model orders, so fp16 and int8 have no tolerance. Two things
count: the loss of AUC of any task, and how often the item that would be shown next, the best of a list by the weighted scores,
is torch's.

The rows are `RUN/published/gate.npz`: the model's inputs by name, rows first, candidate 0 of each row being the item that was
shown, and `labels` [rows, tasks] with NaN for unknown. A list is made of the candidates of several rows, for one row's user.
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
"""In the run's folder `published`."""
AUC_LOSS_MAX = 0.002
"""Largest loss of AUC, of any task, that a reduced precision may have."""
AGREEMENT_MIN = 0.95
"""Smallest share of lists whose best item a reduced precision must have in common with torch."""
LIST_SIZE = 10
"""Candidates of a list that is made of test rows, or as many as the spec allows."""
LABELS_MIN = 20
"""A task with fewer rows of either label has too rough an AUC to gate on, unless there is no other."""


@dataclass(frozen=True)
class GateRows:
    """Test rows: `inputs` by name [rows, ...], `labels` [rows, tasks], NaN unknown."""

    inputs: dict[str, NDArray[Any]]
    labels: NDArray[np.float32]

    @classmethod
    def read(cls, run: Run) -> GateRows:
        """The run's rows. Raises `GateError`: none, of another shape, or without a task that has both labels."""
        path, spec = run.published / GATE_FILE, run.spec
        if not path.is_file():
            raise GateError(str(path), "test rows to gate reduced precisions on (`pocketrank train` writes them)", "none")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, BadZipFile) as error:
            raise GateError(str(path), "a .npz archive", str(error)) from error
        labels = np.asarray(_one(arrays, "labels", path), np.float32)
        if labels.ndim != 2 or labels.shape[1] != len(spec.tasks):
            raise GateError(f"{path}, `labels`", f"[rows, {len(spec.tasks)}]", f"{list(labels.shape)}")
        n, t = _one(arrays, "candidate_mask", path).shape[1], _one(arrays, "event_mask", path).shape[1]
        if n > spec.candidates_max or t > spec.events_max:
            raise GateError(str(path), f"at most {spec.candidates_max} candidates and {spec.events_max} events", f"{n} and {t}")
        inputs = {}
        for name, shape in input_shapes(spec, "split", n, t).items():
            value = _one(arrays, name, path)
            if value.shape != (len(labels), *shape[1:]):
                raise GateError(f"{path}, `{name}`", f"{[len(labels), *shape[1:]]}", f"{list(value.shape)}")
            inputs[name] = value.astype(np.int32 if name.endswith("category") else np.float32)
        rows = cls(inputs, labels)
        if not auc_by_task(labels, np.zeros_like(labels), spec.tasks):
            raise GateError(f"{path}, `labels`", "a task with both labels", "none")
        return rows

    def scores(self, score: Scorer) -> NDArray[np.float32]:
        """Scores [rows, tasks] of candidate 0, row by row, as a device runs a model."""
        rows = range(len(self.labels))
        return np.stack([score({name: v[i : i + 1] for name, v in self.inputs.items()})[0, 0] for i in rows])

    def lists(self, size: int, seed: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
        """Inputs of lists of `size` shown items, each row's in one list, for the user and the moment of the first of them."""
        rows = np.random.default_rng(seed).permutation(len(self.labels))
        for i in range(0, len(rows) - size + 1, size):
            chosen = rows[i : i + size]
            yield {
                name: value[None, chosen, 0] if name.startswith("candidate") else value[chosen[:1]]
                for name, value in self.inputs.items()
            }


def _one(arrays: dict[str, NDArray[Any]], name: str, path: Path) -> NDArray[Any]:
    if name not in arrays or (name.endswith("mask") and arrays[name].ndim != 2):
        raise GateError(f"{path}, `{name}`", "an array", "none" if name not in arrays else f"{arrays[name].ndim} axes")
    return arrays[name]


def auc_by_task(labels: NDArray[np.float32], scores: NDArray[np.float32], tasks: Sequence[str]) -> dict[str, float]:
    """Area under the ROC curve of each task that has rows of both labels, ties counted half."""
    from sklearn.metrics import roc_auc_score

    found = {}
    for i, task in enumerate(tasks):
        known = np.isfinite(labels[:, i])
        if len(np.unique(labels[known, i])) == 2:
            found[task] = float(roc_auc_score(labels[known, i], scores[known, i]))
    return found


def ranking_loss(graph: Graph, rows: GateRows, score: Scorer) -> dict[str, Any]:
    """What the model behind `score` loses against torch.

    `loss` is that of AUC, of the worst task that is `gated`; `order_agreement` the share of lists with the same best item.
    Beside them are their limits (`passes`), and AUC by task of both.
    """
    tasks = graph.spec.tasks
    model = auc_by_task(rows.labels, rows.scores(score), tasks)
    torch = auc_by_task(rows.labels, graph.scores(rows.inputs)[:, 0], tasks)
    fewest = {task: min((rows.labels[:, i] == label).sum() for label in (0, 1)) for i, task in enumerate(tasks)}
    gated = [task for task in torch if fewest[task] >= LABELS_MIN] or list(torch)
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
    """Whether what `ranking_loss` found is within its limits."""
    return bool(gate["loss"] <= gate["limit"] and gate["order_agreement"] >= gate["order_limit"])
