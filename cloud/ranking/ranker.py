"""Runs a trained run's two cloud graphs in onnxruntime: the user tower, and the multi-task ranker that makes the pXTRs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cloud.ranking.published import Published, PublishedError, PublishedRecord

__all__ = ["History", "OnnxRanker", "OnnxRankerConfig"]

_RANKER_INPUTS = ("user_row", "history_row", "history_feedback", "history_mask", "item_row", "scene", "hour")
_TOWER_INPUTS = ("tower_row", "history_vector", "history_feedback", "history_mask")


@dataclass(frozen=True)
class OnnxRankerConfig:
    """How onnxruntime runs the graphs."""

    threads: int = 1
    """Threads of one run. More than one only pays where cores outnumber the requests at work."""


class History(NamedTuple):
    """What is known of a user's past, oldest first, e events."""

    item: NDArray[np.int64]
    """[e] positions in the item tables."""
    feedback: NDArray[np.float32]
    """[e, F] in the order of `cloud.data.samples.HISTORY_FEEDBACK`."""


class OnnxRanker:
    """The graphs in `folder` over the rows of `published`. Raises `PublishedError`. Safe to call from several threads."""

    def __init__(
        self, folder: Path, published: Published, record: PublishedRecord, config: OnnxRankerConfig | None = None
    ) -> None:
        threads = (config or OnnxRankerConfig()).threads
        self._ranker = _open(folder / "ranker.onnx", _RANKER_INPUTS, "pxtr", threads)
        self._tower = _open(folder / "user_tower.onnx", _TOWER_INPUTS, "user_vector", threads)
        # Plain arrays over the same mapped bytes: indexing a memmap costs several times as much.
        self._user_row, self._tower_row = np.asarray(published.user_row), np.asarray(published.tower_row)
        self._item_row, self._item_vector = np.asarray(published.item_row), np.asarray(published.item_vector)
        self._identity_width, self._scenes, self._tasks = record.identity_width, record.scenes, len(record.tasks)
        width = published.history_feedback.shape[2]
        # A history of one masked row is what the graphs take for none.
        self._nothing = History(np.zeros(1, np.int64), np.zeros((1, width), np.float32))
        self._try_out(folder)

    def user_vector(self, user: int, history: History) -> NDArray[np.float32]:
        """The user's vector [D]. `user` is a position in the user tables, 0 = unknown."""
        item, feedback, mask = self._past(history)
        inputs = {
            "tower_row": self._tower_row[user][None],
            "history_vector": self._item_vector[item].astype(np.float32)[None],
            "history_feedback": feedback[None],
            "history_mask": mask[None],
        }
        return _first(self._tower, "user_vector", inputs)

    def pxtr(self, user: int, history: History, items: NDArray[np.int64], *, scene: int, hour: int) -> NDArray[np.float32]:
        """Probabilities [n, K] of every task for the items at positions `items` [n].

        `scene` is a request's scene from 0, one that the run does not know counts as unknown; `hour` is 0..23.
        """
        if not len(items):
            return np.zeros((0, self._tasks), np.float32)
        item, feedback, mask = self._past(history)
        code = scene + 1 if 0 <= scene < self._scenes - 1 else 0
        inputs = {
            "user_row": self._user_row[user][None],
            "history_row": self._item_row[item, : self._identity_width][None],
            "history_feedback": feedback[None],
            "history_mask": mask[None],
            "item_row": self._item_row[items][None],
            "scene": np.full((1, len(items)), code, np.int64),
            "hour": np.full((1, len(items)), hour + 1, np.int64),
        }
        return _first(self._ranker, "pxtr", inputs)

    def _try_out(self, folder: Path) -> None:
        """One run of each graph, so that tables and graphs which do not fit fail here and not under a user."""
        try:
            vector = self.user_vector(0, self._nothing)
            pxtr = self.pxtr(0, self._nothing, np.zeros(1, np.int64), scene=0, hour=0)
        except Exception as error:
            raise PublishedError(f"Expected graphs that take the published rows, got: {error} - at {folder}") from error
        shapes = vector.shape, pxtr.shape
        expected = self._item_vector.shape[1:], (1, self._tasks)
        if shapes != expected:
            raise PublishedError(f"Expected a user vector and pXTRs of shapes {expected}, got {shapes} - at {folder}")

    def _past(self, history: History) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        known = len(history.item) > 0
        item, feedback = history if known else self._nothing
        return item, feedback, np.full(len(item), known, np.float32)


def _open(path: Path, inputs: tuple[str, ...], output: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base class
        raise PublishedError(f"Expected an ONNX graph, got: {error} - at {path}") from error
    found = {i.name for i in session.get_inputs()}, {o.name for o in session.get_outputs()}
    if found != (set(inputs), {output}):
        raise PublishedError(f"Expected a graph {sorted(inputs)} -> {output}, got {sorted(found[0])} -> {found[1]} - at {path}")
    return session


def _first(session: ort.InferenceSession, output: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Run a batch of one and take it out of the batch."""
    result: NDArray[np.float32] = session.run([output], dict(inputs))[0][0]
    return result
