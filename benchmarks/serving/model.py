"""The ranking model alone: the whole graph (`benchmarks.serving.whole`) in onnxruntime on one thread, over rows looked up.

The peers rank with it, and it times what the model itself takes. Nothing is folded, kept or bound: it is run as anybody would.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.serving.whole import WHOLE_GRAPH, WHOLE_ROWS
from cloud.ranking.published import Published

__all__ = ["CANDIDATES", "Model", "ModelTimer"]

CANDIDATES = 500
"""Candidates that are ranked for a page."""
_LISTS = 64
_HOUR_CODE, _SCENE_CODE = 13, 1


class Model:
    """The ranker over the tables in `folder`, and for each user the same `CANDIDATES` every time."""

    def __init__(self, folder: Path) -> None:
        mapped, self.record = Published.open(folder)
        # plain arrays over the mapped bytes, which are quicker to take rows of
        self.published = Published(**{f.name: np.asarray(getattr(mapped, f.name)) for f in fields(mapped)})
        self._item_row = np.asarray(np.load(folder / WHOLE_ROWS, mmap_mode="r"))
        self._identity_width = self.published.item_identity.shape[1]
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(str(folder / WHOLE_GRAPH), options, providers=["CPUExecutionProvider"])
        items = len(self.published.item_id) - 1
        rng = np.random.default_rng(0)
        self._lists = [1 + rng.choice(items, min(CANDIDATES, items), replace=False) for _ in range(_LISTS)]
        self._mask = np.ones((1, self.published.history_item.shape[1]), np.float32)
        self._scene, self._hour = np.full((1, 1), _SCENE_CODE), np.full((1, 1), _HOUR_CODE)

    def candidates(self, user: int) -> NDArray[np.int64]:
        """Positions of what is ranked for the user at a position."""
        return self._lists[user % _LISTS]

    def user(self, user_id: int) -> int:
        """Position of a known user."""
        return int(np.searchsorted(self.published.user_id, user_id))

    def inputs(self, user: int, items: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The rows of a user, of the whole past and of the items."""
        p = self.published
        return {
            "user_row": p.user_row[user][None],
            "history_row": self._item_row[p.history_item[user], : self._identity_width][None],
            "history_feedback": p.history_feedback[user][None],
            "history_mask": self._mask,
            "item_row": self._item_row[items][None],
            "scene": self._scene,
            "hour": self._hour,
        }

    def run(self, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Probabilities [n, tasks]."""
        pxtr: NDArray[np.float32] = self._session.run(["pxtr"], inputs)[0][0]
        return pxtr

    def __call__(self, user: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The candidates of a user and their probabilities."""
        items = self.candidates(user)
        return items, self.run(self.inputs(user, items))


class ModelTimer:
    """Times the model's runs in this thread, hot: inputs looked up before, of so many users in turn."""

    def __init__(self, model: Model, users: int = _LISTS) -> None:
        self._model = model
        self._inputs = [model.inputs(user, model.candidates(user)) for user in range(1, 1 + users)]
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
