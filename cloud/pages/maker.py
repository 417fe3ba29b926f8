"""Makes one page: looks up the user, runs the pipeline, and packs the best candidates as columns in cloud order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import urandom
from time import perf_counter
from typing import NamedTuple

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from pocketrank.cloud.pages.engine import PageEngine
from pocketrank.cloud.pages.splits import VectorsUnavailableError
from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.config import PipelineConfig, PipelineError
from pocketrank.cloud.pipeline.stage import Deadline, Query
from pocketrank.cloud.published.published import PublishedRecord
from pocketrank.cloud.time_zones import hour_of, zone_of
from pocketrank.device.codec import to_block
from pocketrank.device.contract import Block, Candidates, Columns, ContractError, Page, PageRequest, check_experiment

__all__ = ["MadePage", "PageMaker", "PageObserver"]

_DAY_MS = 86_400_000
_UNKNOWN = np.iinfo(np.int64).min
_ROW_0 = np.zeros(1, np.int64)


class PageObserver:
    """Receiver of what is measured while a page is made. This one ignores everything; a subclass collects metrics
    (`pocketrank.cloud.serving.telemetry.metrics`).
    """

    def stage(self, name: str, seconds: float) -> None:
        """Record the time of a stage: `state`, `tower`, one of the pipeline's stages, or `assemble`."""

    def page(self, retrieved: int, returned: int, without_vectors: str | None) -> None:
        """Record a finished page; `without_vectors` is `unknown`, `not_asked` or `unavailable` when it has none."""

    def made(self, query: Query, page: Page) -> None:
        """Record what a finished page was made from."""

    def degraded(self, reason: str) -> None:
        """Record that a part of a page is missing or was replaced."""


class MadePage(NamedTuple):
    """A page, and what it was made from."""

    page: Page
    query: Query
    candidates: CandidateSet
    """those of the page, in its order"""


_Columns = list[int] | slice
"""Columns of a table. A slice stands for all of them, because it copies nothing."""


class _SentColumns:
    """Columns of the tables that are sent for each candidate, and their names on the page.

    They are those that `features` names, or all. Raises `PipelineError` for a name that the run does not have.
    """

    def __init__(self, record: PublishedRecord, features: Sequence[str] | None) -> None:
        pxtr = [f"pxtr_{task}" for task in record.tasks]
        of_moment = record.features.config
        moment = [of_moment.names[place] for place in of_moment.device]
        known = {*pxtr, *record.float_names, "age", *moment, *record.category_names}
        if features is not None and (unknown := set(features) - known):
            what = f"Expected features among {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}"
            raise PipelineError("$.page.features", what)

        def wanted(names: Sequence[str]) -> list[str]:
            return [name for name in names if features is None or name in features]

        def columns(sent: list[str], names: Sequence[str]) -> _Columns:
            return slice(None) if len(sent) == len(names) else [names.index(name) for name in sent]

        tasks, floats, categories = wanted(pxtr), wanted(record.float_names), wanted(record.category_names)
        age = ["age"] if "age" not in record.float_names and (features is None or "age" in features) else []
        self.tasks, self.floats = columns(tasks, pxtr), columns(floats, record.float_names)
        self.categories = columns(categories, record.category_names)
        self.numbering = record.numbering or UNSET
        self.task_count, self.age = len(tasks), bool(age)
        sent = wanted(moment)
        self.moment = [of_moment.names.index(name) for name in sent]
        self.float_names, self.category_names = (*tasks, *floats, *age, *sent), tuple(categories)


class PageMaker:
    """Maker of pages from an engine. Not for several threads at a time. Raises `PipelineError` for a config that does not fit.

    Edge cases: an unknown user gets popular items and those near the vector of the unknown user. Exclusions of unknown items
    have no effect. A user who has seen almost everything gets a shorter page, and so does everybody with an empty catalogue; a
    page may hold no candidates at all. While the store is unavailable, pages come without vectors.
    """

    def __init__(
        self,
        engine: PageEngine,
        config: PipelineConfig,
        *,
        observer: PageObserver | None = None,
        price: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """`price` returns what one more page costs now (`pocketrank.cloud.serving.load.price`)."""
        self._config, self._budget, self._record = config.page, config.limits, engine.record
        self._pipeline, self._catalogue, self._filters = engine.pipeline, engine.catalogue, engine.filters
        self._splits, self._states, self._users = engine.splits, engine.states, engine.users.positions
        self._observer, self._price = observer or PageObserver(), price
        self._sent = _SentColumns(engine.record, config.page.features)
        self._zone = zone_of(engine.record.time_zone)

    @property
    def columns(self) -> frozenset[str]:
        """Names of the columns that pages have."""
        return frozenset((*self._sent.float_names, *self._sent.category_names))

    def check(self, request: PageRequest) -> None:
        """Raise `ContractError` for a size out of range or an unusable experiment. Call it before feedback is accepted."""
        if not 1 <= request.size <= self._config.size_max:
            raise ContractError("$.size", f"1 to {self._config.size_max} candidates", str(request.size))
        check_experiment(request.experiment, "$.experiment")

    def __call__(self, request: PageRequest, since: float | None = None) -> Page:
        """Return the page that `request` asks for. `since` is when it arrived by `time.perf_counter`; None means now."""
        return self.make(request, since).page

    def make(self, request: PageRequest, since: float | None = None) -> MadePage:
        """Return the page, and what it was made from."""
        deadline = Deadline(self._budget.page_ms / 1e3, since)
        started = perf_counter()
        query = self._query(request, deadline)
        started = self._lap("state", started)
        vector = self._user_vectors(query, request.split_version)
        self._lap("tower", started)
        candidates = self._pipeline(query, self._observer.stage)
        retrieved = len(candidates)
        query.deadline = deadline
        started = perf_counter()
        candidates = candidates.take(slice(request.size))
        page = self._page(query, candidates, vector)
        self._lap("assemble", started)

        # Report what the page lacks.
        without = None
        if page.split_version is None:
            asked = request.split_version
            without = "not_asked" if asked is None else "unavailable" if asked in self._splits.versions else "unknown"
        self._observer.page(retrieved, len(page.candidates.item_id.data) // 8, without)
        for reason in query.degraded:
            self._observer.degraded(reason)
        self._observer.made(query, page)
        return MadePage(page, query, candidates)

    def _lap(self, stage: str, since: float) -> float:
        """Report the time of a stage that began at `since`. Returns the time."""
        now = perf_counter()
        self._observer.stage(stage, now - since)
        return now

    def _query(self, request: PageRequest, deadline: Deadline) -> Query:
        state = self._states(request.user_id, request.experiment)
        exclude = [_ROW_0, self._filters.removed, self._catalogue.positions(request.exclude)]
        if self._filters.config.seen:
            exclude.append(state.seen)
        return Query(
            request=request,
            user=self._users.one(request.user_id),
            history=state.history,
            exclude=np.concatenate(exclude),
            hour=hour_of(request.now_ms, self._zone),
            deadline=deadline,
            recent=state.recent,
        )

    def _user_vectors(self, query: Query, asked: str | None) -> NDArray[np.float32] | None:
        """Return the user's vector in the version `asked` for. Sets the query's vector, which is in that of the served run."""
        ids, feedback = self._catalogue.item_id[query.history.item], query.history.feedback
        served, user_id, vector = self._record.split_version, query.request.user_id, None
        deadline = query.deadline.sooner(self._budget.store_ms / 1e3)
        try:
            query.vector = self._splits.user(served, user_id, ids, feedback, deadline)
            if asked == served:
                vector = query.vector
            elif asked is not None and asked in self._splits.versions:
                vector = self._splits.user(asked, user_id, ids, feedback, deadline)
        except VectorsUnavailableError:
            query.degraded.append("no_user_vector")
        return vector

    def _page(self, query: Query, candidates: CandidateSet, vector: NDArray[np.float32] | None) -> Page:
        request, catalogue, items = query.request, self._catalogue, candidates.item
        ids = catalogue.item_id.take(items)
        vectors = None if vector is None else self._vectors(query, ids)
        split = request.split_version if vectors is not None else None
        sent = self._sent
        return Page(
            page_id=urandom(16).hex(),
            request_id=request.request_id,
            # The device decides when a page is stale, so the page carries the time of the device's clock.
            created_ms=request.now_ms,
            ttl_ms=self._config.ttl_ms,
            candidates=Candidates(
                item_id=to_block(ids, "i8"),
                floats=Columns(names=sent.float_names, values=to_block(self._floats(request, candidates), "f4")),
                categories=Columns(
                    names=sent.category_names, values=to_block(catalogue.categories.take(items, 0)[:, sent.categories], "i4")
                ),
                numbering=sent.numbering,
                vector=vectors,
            ),
            compute_price=self._price(),
            user_vector=None if vectors is None or vector is None else to_block(vector, "f2"),
            split_version=split,
            split_reason=None if split else self._reason(request.split_version),
            degraded=tuple(query.degraded),
        )

    def _floats(self, request: PageRequest, candidates: CandidateSet) -> NDArray[np.float32]:
        sent, catalogue = self._sent, self._catalogue
        floats = np.empty((len(candidates), len(sent.float_names)), np.float32)
        k, m = sent.task_count, len(sent.float_names) - len(sent.moment)
        f = m - sent.age
        if candidates.pxtr is None:
            floats[:, :k] = np.nan
        else:
            floats[:, :k] = candidates.pxtr[:, sent.tasks]
        floats[:, k:f] = catalogue.floats.take(candidates.item, 0)[:, sent.floats]
        if sent.age:
            upload_ms = catalogue.upload_ms.take(candidates.item)
            floats[:, m - 1] = request.now_ms / _DAY_MS - np.where(upload_ms > _UNKNOWN, upload_ms / _DAY_MS, np.nan)
        if sent.moment:
            floats[:, m:] = np.nan if candidates.statistics is None else candidates.statistics[:, sent.moment]
        return floats

    def _vectors(self, query: Query, ids: NDArray[np.int64]) -> Block | None:
        """Return vectors [n, D] of the version asked for. An item that it does not know gets its vector of the unknown item."""
        version = query.request.split_version
        assert version is not None
        deadline = query.deadline.sooner(self._budget.store_ms / 1e3)
        try:
            vectors, found = self._splits.items(version, ids, deadline)
            if np.count_nonzero(found) < len(ids):
                unknown = self._splits.items(version, np.array([_UNKNOWN]), deadline)
                vectors = np.where(found[:, None], vectors, unknown.vectors)
        except VectorsUnavailableError:
            query.degraded.append("no_vectors")
            return None
        return to_block(vectors, "f2")

    def _reason(self, version: str | None) -> str:
        if version is None:
            return "not asked for"
        if version in self._splits.versions:
            return "vectors are temporarily unavailable"
        return f"unknown split version {version[:64]}"  # the sender's text is cut to the length of a digest
