"""The ranking model alone, in onnxruntime on one thread: whole, as the peers rank with it (`benchmarks.serving.whole`), or as
it is served. Nothing is kept or bound: it is run as anybody would.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.serving.whole import WHOLE_GRAPH, WHOLE_ROWS
from pocketrank.cloud.published.published import Published

__all__ = ["CANDIDATES", "Model", "ModelTimer"]

CANDIDATES = 500
"""Candidates that are ranked for a page."""
_SCENE_CODE = 1
_USERS = 64  # whose inputs the model is timed on


class Model:
    """The ranker over the tables in `folder`: the whole one, or the one that the product serves."""

    def __init__(self, folder: Path, *, whole: bool = True) -> None:
        mapped, self.record = Published.open(folder)
        # plain arrays over the mapped bytes, which are quicker to take rows of
        plain: dict[str, Any] = {name: np.asarray(values) for name, values in mapped.arrays().items()}
        self.published = p = replace(mapped, **plain)
        self._whole, self._item_row, self._identity = whole, p.item_row, p.item_identity
        if whole:
            self._item_row = np.asarray(np.load(folder / WHOLE_ROWS, mmap_mode="r"))
            self._identity = self._item_row[:, : p.item_identity.shape[1]]
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        graph = folder / (WHOLE_GRAPH if whole else "ranker.onnx")
        self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._mask = np.ones((1, p.history_item.shape[1]), np.float32)
        self._scene = np.full((1, 1), _SCENE_CODE)

    def user(self, user_id: int) -> int:
        """Position of a known user."""
        return int(np.searchsorted(self.published.user_id, user_id))

    def inputs(self, user: int, items: NDArray[np.int64], hour: int = 12) -> dict[str, NDArray[Any]]:
        """The rows of a user, of the whole past and of the items, at an `hour` of 0 to 23."""
        p = self.published
        inputs = {
            "user_row": p.user_row[user][None],
            "history_row": self._identity[p.history_item[user]][None],
            "history_feedback": p.history_feedback[user][None],
            "item_row": self._item_row[items][None],
            "scene": self._scene,
            "hour": np.array([[hour + 1]]),
        }
        return inputs | {"history_mask": self._mask} if self._whole else inputs

    def run(self, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Probabilities [n, tasks]."""
        pxtr: NDArray[np.float32] = self._session.run(["pxtr"], inputs)[0][0]
        return pxtr


class ModelTimer:
    """Times the model's runs in this thread, hot: inputs looked up before, of so many users in turn, with items at random."""

    def __init__(self, model: Model) -> None:
        self._model = model
        items, rng = len(model.published.item_id) - 1, np.random.default_rng(0)
        lists = [1 + rng.choice(items, min(CANDIDATES, items), replace=False) for _ in range(_USERS)]
        self._inputs = [model.inputs(user, drawn) for user, drawn in enumerate(lists, 1)]
        self.runs: list[float] = []
        self.means: list[float] = []

    def round(self, seconds: float) -> None:
        """Run it for so long."""
        for inputs in self._inputs[:8]:
            self._model.run(inputs)
        runs: list[float] = []
        until, cpu = perf_counter() + seconds, thread_time()
        while (started := perf_counter()) < until or not runs:
            self._model.run(self._inputs[len(runs) % len(self._inputs)])
            runs.append(perf_counter() - started)
        self.means.append((thread_time() - cpu) / len(runs) * 1e3)
        self.runs += runs

    @property
    def ms(self) -> float:
        """CPU milliseconds of a run, the median over rounds of their means."""
        return float(np.median(self.means))

    @property
    def p50_ms(self) -> float:
        """Wall milliseconds of a run, the median."""
        return float(np.median(self.runs)) * 1e3
