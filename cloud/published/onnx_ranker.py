"""Runs the multi-task ranker, which computes the pXTRs, in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.published.graphs import first, measured_threads, open_graph
from pocketrank.cloud.published.live_rows import LiveRows
from pocketrank.cloud.published.moment import Moment, MomentInputs, published_statistics
from pocketrank.cloud.published.published import Published, PublishedError, PublishedRecord

__all__ = ["History", "OnnxRanker", "OnnxRankerConfig"]

_INPUTS = ("user_row", "history_row", "history_feedback", "item_row", "scene", "hour")


@dataclass(frozen=True)
class OnnxRankerConfig:
    """How onnxruntime runs the graph."""

    threads: int | None = None
    """Threads of one run. None: as many as `pocketrank.cloud.published.graphs.measured_threads` finds."""
    processes: int = 1
    """Processes that share the machine's cores."""
    candidates: int = 500
    """Number of candidates to measure with."""


class History(NamedTuple):
    """The e last events of a user, oldest first."""

    item: NDArray[np.int64]
    """[e] positions in the item tables."""
    feedback: NDArray[np.float32]
    """[e, F] in the order of `pocketrank.cloud.data.feedback.HISTORY_FEEDBACK`, and then of the run's own actions."""


class OnnxRanker:
    """The ranker in `folder` over the rows of `published`. Raises `PublishedError`. Safe to call from several threads."""

    def __init__(
        self,
        folder: Path,
        published: Published,
        record: PublishedRecord,
        config: OnnxRankerConfig | None = None,
        *,
        items: LiveRows | None = None,
        users: LiveRows | None = None,
    ) -> None:
        """`items` and `users` are the rows where they change, by default those of `published`."""
        config = config or OnnxRankerConfig()
        self._items = items or LiveRows(
            published.item_id, {"item_row": published.item_row, "item_identity": published.item_identity}
        )
        self._users = users or LiveRows(published.user_id, {"user_row": published.user_row})
        self._tasks, self._feedback_width = len(record.tasks), published.history_feedback.shape[2]
        self._scenes = [np.array([[code]], np.int64) for code in range(record.scenes)]
        self._hours = [np.array([[hour + 1]], np.int64) for hour in range(24)]
        self._path = folder / "ranker.onnx"
        statistics = published_statistics(published, record)
        self._no_moment = Moment(statistics, None).nothing
        self._names = _INPUTS + ("statistics",) * bool(statistics.names)
        if statistics.config.sequences:
            self._names += ("sequence_row", "sequence_mask")
        self._graph = open_graph(self._path, self._names, "pxtr")
        self._try_out()
        self.threads = config.threads or self._measure(record.history_max, config)
        """Number of threads of one run."""
        if self.threads > 1:
            self._graph = open_graph(self._path, self._names, "pxtr", self.threads)

    @property
    def nothing(self) -> NDArray[np.float32]:
        """[0, K] the pXTRs of no items"""
        return np.zeros((0, self._tasks), np.float32)

    def pxtr(
        self,
        user: int,
        history: History,
        items: NDArray[np.int64],
        *,
        scene: int,
        hour: int,
        moment: MomentInputs | None = None,
    ) -> NDArray[np.float32]:
        """Return the probabilities [n, K] of every task for the items at positions `items` [n].

        `user` is a position in the user tables, 0 = unknown. `scene` is that of the request, from 0; a scene that the run does
        not know counts as unknown. `hour` is 0..23. `moment` are the features of the moment, by default those of a user and of
        items without events.
        """
        if not len(items):
            return self.nothing
        return first(self._graph, "pxtr", self._inputs(user, history, items, scene, hour, moment))

    def _inputs(
        self,
        user: int,
        history: History,
        items: NDArray[np.int64],
        scene: int,
        hour: int,
        moment: MomentInputs | None = None,
    ) -> dict[str, NDArray[Any]]:
        columns = self._items.columns
        identity = columns["item_identity"]
        inputs: dict[str, NDArray[Any]] = {
            "user_row": self._users.columns["user_row"][user : user + 1],
            "history_row": identity.take(history.item, 0)[None],
            "history_feedback": history.feedback[None],
            "item_row": columns["item_row"].take(items, 0)[None],
            "scene": self._scenes[scene + 1 if 0 <= scene < len(self._scenes) - 1 else 0],
            "hour": self._hours[hour],
        }
        if len(self._names) > len(_INPUTS):
            statistics, sequence, mask = moment or self._no_moment
            if statistics.shape[1]:
                inputs["statistics"] = np.broadcast_to(statistics, (len(items), statistics.shape[1]))[None]
            if len(sequence):
                inputs |= {"sequence_row": identity[sequence][None], "sequence_mask": mask[None]}
        return inputs

    def _measure(self, events: int, config: OnnxRankerConfig) -> int:
        inputs = self._inputs(0, self._empty_history(events), np.zeros(config.candidates, np.int64), 0, 0)

        def run(threads: int) -> Callable[[], object]:
            graph = open_graph(self._path, self._names, "pxtr", threads)
            return lambda: graph.run(["pxtr"], inputs)

        return measured_threads(run, config.processes)

    def _empty_history(self, events: int) -> History:
        return History(np.zeros(events, np.int64), np.zeros((events, self._feedback_width), np.float32))

    def _try_out(self) -> None:
        """Run once, so that a graph that does not fit the tables fails here and not at a user's page."""
        try:
            pxtr = self.pxtr(0, self._empty_history(0), np.zeros(1, np.int64), scene=0, hour=0)
        except Exception as error:
            raise PublishedError(f"Expected graphs that take the published rows, got: {error} - at {self._path}") from error
        if pxtr.shape != (1, self._tasks):
            raise PublishedError(f"Expected pXTRs of shape {(1, self._tasks)}, got {pxtr.shape} - at {self._path}")
