"""Everything that pages are made from: the published run, its indexes, the pipeline and all split versions that are served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

import numpy as np

from pocketrank.cloud.pages.renewal import Renewal
from pocketrank.cloud.pages.splits import Split, Splits
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.pipeline.config import PipelineConfig, PipelineError
from pocketrank.cloud.pipeline.filters import Filters
from pocketrank.cloud.pipeline.pipeline import Pipeline
from pocketrank.cloud.pipeline.stage import Resources
from pocketrank.cloud.published.artifacts import Artifacts
from pocketrank.cloud.published.catalogue import Catalogue
from pocketrank.cloud.published.id_texts import PublishedIds
from pocketrank.cloud.published.live_rows import LiveRows
from pocketrank.cloud.published.moment import Moment, published_statistics
from pocketrank.cloud.published.onnx_ranker import OnnxRanker, OnnxRankerConfig
from pocketrank.cloud.published.profile import Profile
from pocketrank.cloud.published.published import Published, PublishedError, PublishedRecord
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.stores.base import EmbeddingStore, StoreWriteError
from pocketrank.cloud.stores.filling import fill_store
from pocketrank.cloud.stores.mapped import MappedStore
from pocketrank.cloud.stores.opening import open_store
from pocketrank.cloud.training.run import Run
from pocketrank.cloud.vectors.index import VectorIndex
from pocketrank.cloud.vectors.ivf import IvfIndex
from pocketrank.cloud.vectors.opening import IndexConfig, open_index

__all__ = ["PageEngine", "fill_stores", "open_engine"]

_DAY_S = 86_400.0
_WRITER_WAIT_S = 60.0
"""Longest wait for another process that fills the same files."""
_WRITER_RETRY_S = 0.1
"""Time between two attempts while another process fills them."""


class PageEngine(NamedTuple):
    """All parts with which a process makes pages. `open_engine` opens one."""

    published: Published
    record: PublishedRecord
    catalogue: Catalogue
    ranker: OnnxRanker
    filters: Filters
    pipeline: Pipeline
    splits: Splits
    states: UserStates
    indexes: dict[str, VectorIndex]
    """By their names in the pipeline file."""
    ids: PublishedIds
    """The dictionaries of the run."""
    moment: Moment | None
    """Features of the moment; None where the run has none."""
    users: LiveRows
    """Rows of users that the ranker sees."""
    profile: Profile | None
    """How its inputs were distributed in training; None for a run that does not say."""


@contextmanager
def open_engine(
    run: Run, config: ServingConfig, former: Sequence[Run] = (), *, threads: int | None = None
) -> Iterator[PageEngine]:
    """Open an engine for `run`, whose vectors `fill_stores` has put in place. After the block the renewal has stopped, and
    indexes, stages and the store are closed.

    Beside the run's split version, those of the pipeline file and of `former` runs are served. The ranker has so many
    `threads`, or as many as are found to be fastest.

    Raises `PublishedError`, `PipelineError`, `RetrievalError`, `StoreError` or `RunError` when a part cannot be opened; what
    was open by then is closed again.
    """
    pipeline = config.pipeline
    published, record = Published.open(run.published)
    if not record.ranker:
        message = "Expected a run with a ranker, got one that was trained on the log's own scores"
        raise PublishedError(f"{message}; serve pages with `pocketrank.pages` - at {run.folder}")
    catalogue, profile = Catalogue(published, record), Profile.open(run.published)
    ids = PublishedIds.open(run.published)
    ids.check("item_id", catalogue.item_id[1:])  # a page names every item
    with ExitStack() as stack:
        # Stages and what they use.
        users = LiveRows(published.user_id, {"user_row": published.user_row})
        ranker = OnnxRanker(
            run.published, published, record, OnnxRankerConfig(threads, config.workers), items=catalogue.rows, users=users
        )
        filters = _filters(pipeline, catalogue, config.folder, ids)
        indexes = {name: _index(name, table, catalogue, published, record) for name, table in pipeline.index.items()}
        for index in indexes.values():
            stack.callback(index.close)
        statistics = published_statistics(published, record)
        states = UserStates(
            published, record, config.seen_max, config.user_events_max, items=catalogue.rows, statistics=statistics
        )
        artifacts = Artifacts(run.folder / "artifacts")
        counts = states.counts
        moment = Moment(statistics, None if counts is None else counts.as_of) if record.features.config else None
        resources = Resources(catalogue, ranker, indexes, filters, config.folder, artifacts, moment)
        stages = Pipeline(pipeline, resources, run.spec.task_weights)
        stack.callback(stages.close)
        # The served split version, then the older ones.
        store = open_store(_url(run, config))
        stack.callback(store.close)
        runs = [run, *_older(run, config, former)]
        halves = [(published, record), *(Published.open(old.published) for old in runs[1:])]
        # Mapped files are filled by one process before any serves them, so they are never filled again.
        refill = None if isinstance(store, MappedStore) else partial(_fill, store, halves, config)
        splits = Splits([Split(one.published, *half) for one, half in zip(runs, halves, strict=True)], store, refill=refill)
        stack.callback(splits.close)
        if (ttl_s := _ttl_s(config)) is not None:
            stack.callback(Renewal(partial(_put, run, halves, config, 0.0), ttl_s).close)
        parts = published, record, catalogue, ranker, filters, stages, splits, states, indexes, ids, moment, users, profile
        yield PageEngine(*parts)


def fill_stores(run: Run, config: ServingConfig, former: Sequence[Run] = (), *, wait_s: float = _WRITER_WAIT_S) -> None:
    """Write the vectors of all versions that will be served to the store, where every process finds them.

    Waits up to `wait_s` seconds for another server that fills the same files; rows that it wrote are not written again. Raises
    `StoreError`, `RunError`.
    """
    _put(run, [Published.open(one.published) for one in (run, *_older(run, config, former))], config, wait_s)


def _put(run: Run, halves: Sequence[tuple[Published, PublishedRecord]], config: ServingConfig, wait_s: float) -> None:
    deadline = monotonic() + wait_s
    while True:
        with closing(open_store(_url(run, config))) as store:
            try:
                return _fill(store, halves, config)
            except StoreWriteError:
                if not isinstance(store, MappedStore) or monotonic() > deadline:
                    raise
        sleep(_WRITER_RETRY_S)


def _fill(store: EmbeddingStore, halves: Sequence[tuple[Published, PublishedRecord]], config: ServingConfig) -> None:
    for published, record in halves:
        fill_store(store, published, record, _ttl_s(config))


def _ttl_s(config: ServingConfig) -> float | None:
    days = config.pipeline.store.ttl_days
    return None if days is None else days * _DAY_S


def _url(run: Run, config: ServingConfig) -> str:
    return config.pipeline.store.url or f"mmap:{run.folder / 'vectors'}"


def _older(run: Run, config: ServingConfig, former: Sequence[Run]) -> list[Run]:
    """Return the other runs whose split versions are served, one for each version."""
    by_version = {run.record.split_version: run}
    for other in (*(Run.open(config.folder / split.run) for split in config.pipeline.split), *former):
        by_version.setdefault(other.record.split_version, other)
    return list(by_version.values())[1:]


def _filters(pipeline: PipelineConfig, catalogue: Catalogue, folder: Path, ids: PublishedIds) -> Filters:
    try:
        return Filters(pipeline.filters, catalogue, folder, ids)
    except OSError as error:
        raise PipelineError("$.filters.removed", f"Expected a file of item ids, got: {error}") from error
    except ValueError as error:
        raise PipelineError("$.filters.removed", str(error)) from error


def _index(name: str, config: IndexConfig, catalogue: Catalogue, published: Published, record: PublishedRecord) -> VectorIndex:
    index = open_index(config, name=f"{name}-{record.split_version}")
    items = np.arange(1, len(catalogue))
    if len(index) == len(items):  # another server has filled an index that both share
        return index
    index.upsert(items, np.asarray(published.item_vector)[1:], catalogue.attributes.take(items))
    if isinstance(index, IvfIndex):
        index.wait()  # a server reports ready only when its searches are as fast as they will be
    return index
