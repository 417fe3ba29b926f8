"""One page: feedback in, then retrieve, rank, fuse, and the top of it as columns in cloud order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from cloud.ranking.published import Published, PublishedRecord
from cloud.ranking.ranker import OnnxRanker
from cloud.reranking.spread import spread_categories
from cloud.retrieval.retriever import Retriever
from cloud.serving.ids import IdIndex
from cloud.serving.intake import FeedbackIntake, check_experiment
from cloud.serving.state import UserStates
from device.codec import to_block
from device.contract import Candidates, Columns, ContractError, FeedbackReceipt, Page, PageRequest

__all__ = ["PageConfig", "PageMaker", "PageObserver"]


@dataclass(frozen=True)
class PageConfig:
    """What a page is."""

    size_max: int = 100
    """Most candidates that a request may ask for."""
    ttl_ms: int = 600_000
    """A page is stale after this long, on the device's clock."""
    task_weights: Mapping[str, float] | None = None
    """Cloud order is the sum of weight x pXTR; a task that is not named weighs nothing. None: every task weighs 1."""
    category_most: int | None = 3
    """Candidates of one category that may come before every category had its share; None: no limit."""

    def __post_init__(self) -> None:
        if self.category_most is not None and self.category_most < 1:
            raise ValueError(f"Expected category_most >= 1 or None, got {self.category_most}")


class PageObserver:
    """Told what happens on the way to a page. This one does not listen; metrics do (`cloud.serving.metrics`)."""

    def stage(self, name: str, seconds: float) -> None:
        """A stage took so long: `feedback`, `tower`, `retrieve`, `rank`, `assemble`."""

    def feedback(self, receipt: FeedbackReceipt) -> None:
        """The request's feedback was taken in."""

    def page(self, retrieved: int, returned: int, without_vectors: str | None) -> None:
        """A page is made; `without_vectors` is `unknown` or `not_asked` when it has none."""


class PageMaker:
    """Makes pages of a published run. Raises `ValueError` for a config that does not fit it. Safe to call from several threads.

    What it does at the edges: an unknown user gets popular items and those near the vector of nobody in particular; feedback
    and exclusions of unknown items are taken in without effect; a user who has seen almost everything, or an empty catalogue,
    gets a shorter page, down to no candidates.
    """

    def __init__(
        self,
        published: Published,
        record: PublishedRecord,
        *,
        ranker: OnnxRanker,
        retriever: Retriever,
        states: UserStates,
        intake: FeedbackIntake,
        config: PageConfig | None = None,
        observer: PageObserver | None = None,
        price: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """`price` tells what one more page costs now (`cloud.serving.price`)."""
        self._config, self._record, self._observer = config or PageConfig(), record, observer or PageObserver()
        self._ranker, self._retriever, self._states, self._intake = ranker, retriever, states, intake
        self._price = price
        self._utc_offset_h = record.utc_offset_h
        self._items, self._users = IdIndex(published.item_id), IdIndex(published.user_id)
        self._item_id, self._item_float = np.asarray(published.item_id), np.asarray(published.item_float)
        self._item_category, self._item_vector = np.asarray(published.item_category), np.asarray(published.item_vector)
        names = record.category_names
        self._category = self._item_category[:, names.index("category")] if "category" in names else None
        self._float_names = (*(f"pxtr_{task}" for task in record.tasks), *record.float_names)
        weights = dict.fromkeys(record.tasks, 1.0) if self._config.task_weights is None else self._config.task_weights
        if unknown := set(weights) - set(record.tasks):
            raise ValueError(f"Expected weights of the tasks {', '.join(record.tasks)}, got {', '.join(sorted(unknown))}")
        self._weights = np.array([weights.get(task, 0.0) for task in record.tasks], np.float32)

    def __call__(self, request: PageRequest) -> Page:
        """The page that `request` asks for, its feedback taken in before.

        Raises `ContractError` for a size out of range, an unusable event id or experiment; `LogWriteError` when feedback cannot
        be kept: there is no page without it, so that a page acknowledges the feedback that was sent along.
        """
        if not 1 <= request.size <= self._config.size_max:
            raise ContractError("$.size", f"1 to {self._config.size_max} candidates", str(request.size))
        check_experiment(request.experiment, "$.experiment")
        lap = _Laps(self._observer.stage)
        if request.feedback:
            self._observer.feedback(self._intake(request.feedback, "$.feedback"))
            lap("feedback")
        state = self._states(request.user_id, request.experiment)
        user = int(self._users((request.user_id,))[0])
        vector = self._ranker.user_vector(user, state.history)
        lap("tower")
        exclude = np.concatenate([np.zeros(1, np.int64), state.seen, self._items(request.exclude)])
        found = self._retriever(vector, len(state.history.item), exclude)
        lap("retrieve")
        hour = (request.now_ms // 3_600_000 + self._utc_offset_h) % 24
        pxtr = self._ranker.pxtr(user, state.history, found, scene=request.scene, hour=hour)
        lap("rank")
        top = self._order(found, pxtr)[: request.size]
        page = self._page(request, found[top], pxtr[top], vector)
        lap("assemble")
        without = None if page.split_version else "not_asked" if request.split_version is None else "unknown"
        self._observer.page(len(found), len(top), without)
        return page

    def _order(self, items: NDArray[np.int64], pxtr: NDArray[np.float32]) -> NDArray[np.int64]:
        """Cloud order of ranked items."""
        ranked = np.argsort(-(pxtr @ self._weights), kind="stable")
        if self._config.category_most is None or self._category is None:
            return ranked
        return ranked[spread_categories(self._category[items[ranked]], self._config.category_most)]

    def _page(
        self, request: PageRequest, items: NDArray[np.int64], pxtr: NDArray[np.float32], vector: NDArray[np.float32]
    ) -> Page:
        record = self._record
        split = request.split_version == record.split_version
        floats = np.concatenate([pxtr, self._item_float[items]], 1)
        return Page(
            page_id=uuid4().hex,
            request_id=request.request_id,
            # The device judges staleness, so the page is dated by the device's clock.
            created_ms=request.now_ms,
            ttl_ms=self._config.ttl_ms,
            candidates=Candidates(
                item_id=to_block(self._item_id[items], "i8"),
                floats=Columns(names=self._float_names, values=to_block(floats, "f4")),
                categories=Columns(names=record.category_names, values=to_block(self._item_category[items], "i4")),
                vector=to_block(self._item_vector[items], "f2") if split else None,
            ),
            compute_price=self._price(),
            user_vector=to_block(vector, "f2") if split else None,
            split_version=record.split_version if split else None,
            split_reason=None if split else _reason(request.split_version),
        )


class _Laps:
    """Tells how long each stage took since the last."""

    def __init__(self, tell: Callable[[str, float], None]) -> None:
        self._tell, self._since = tell, perf_counter()

    def __call__(self, stage: str) -> None:
        now = perf_counter()
        self._tell(stage, now - self._since)
        self._since = now


def _reason(version: str | None) -> str:
    # Cut short: the version is the sender's text, and a digest has 64 characters.
    return "not asked for" if version is None else f"unknown split version {version[:64]}"
