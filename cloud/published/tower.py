"""Runs the user tower, the part of the split model that computes a user's vector, in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.published.graphs import first, open_graph
from pocketrank.cloud.published.published import Published, PublishedError, PublishedRecord

__all__ = ["UserTower"]

_INPUTS = ("tower_row", "history_vector", "history_feedback", "history_mask")


class UserTower:
    """User tower in `folder` over the users of `published`. Raises `PublishedError`. Safe to call from several threads."""

    def __init__(self, folder: Path, published: Published, record: PublishedRecord) -> None:
        self._graph = open_graph(folder / "user_tower.onnx", _INPUTS, "user_vector")
        self._row = np.asarray(published.tower_row)
        self.width = published.item_vector.shape[1]
        """Width D of the vectors."""
        self.history_max = record.tower_history_max
        """Number of latest events that it sees."""
        # The graph needs at least one row, so one masked row stands for an empty history.
        self._no_vector = np.zeros((1, self.width), np.float16)
        self._no_feedback = np.zeros((1, published.history_feedback.shape[2]), np.float32)
        try:
            vector = self(0, self._no_vector[:0], self._no_feedback[:0], np.zeros(0, np.bool_))
        except Exception as error:
            raise PublishedError(f"Expected a graph that takes the published rows, got: {error} - at {folder}") from error
        if vector.shape != (self.width,):
            raise PublishedError(f"Expected a user vector of shape {(self.width,)}, got {vector.shape} - at {folder}")

    def __call__(
        self, user: int, vectors: NDArray[np.float16], feedback: NDArray[np.float32], known: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Return the user's vector [D]. `user` is a position in the user tables, 0 = unknown.

        `vectors` [e, D] and `feedback` [e, F] belong to the latest `history_max` events, oldest first. Events that are not
        `known` [e] are ignored.
        """
        if not len(vectors):
            vectors, feedback, known = self._no_vector, self._no_feedback, np.zeros(1, np.bool_)
        inputs: dict[str, NDArray[Any]] = {
            "tower_row": self._row[user : user + 1],
            "history_vector": vectors[None],
            "history_feedback": feedback[None],
            "history_mask": known[None],
        }
        return first(self._graph, "user_vector", inputs)
