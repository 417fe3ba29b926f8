"""Vectors of a real Valkey that is killed and comes back empty."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from pocketrank.cloud.pages.engine import fill_stores, open_engine
from pocketrank.cloud.pages.splits import Split, Splits, VectorsUnavailableError
from pocketrank.cloud.pipeline.config import PipelineConfig, StoreConfig
from pocketrank.cloud.pipeline.stage import Deadline
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.stores.base import StoreError, UnknownVersionError
from pocketrank.cloud.stores.filling import fill_store
from pocketrank.cloud.stores.opening import open_store
from pocketrank.cloud.training.run import Run
from tests.cloud.small_published import SPLIT_VERSION, SmallRun, small_run
from tests.valkey import ValkeyServer, valkey_server, wait_until


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with valkey_server() as running:
        yield running


def has_all(splits: Splits, run: SmallRun) -> bool:
    try:
        rows = splits.items(SPLIT_VERSION, run.published.item_id, Deadline(5.0))
    except VectorsUnavailableError:
        return False
    return bool(rows.found.all()) and np.array_equal(rows.vectors, run.published.item_vector)


def test_a_store_that_comes_back_empty_is_filled_again(run: SmallRun, server: ValkeyServer) -> None:
    config = ServingConfig(pipeline=PipelineConfig(store=StoreConfig(url=server.url)))
    fill_stores(Run.open(run.folder), config)
    with open_engine(Run.open(run.folder), config) as engine:
        assert has_all(engine.splits, run)
        assert not engine.splits.unavailable
        server.kill()
        assert not has_all(engine.splits, run)
        assert engine.splits.unavailable
        with pytest.raises(StoreError):
            engine.splits.check()
        server.restart()
        wait_until(lambda: not engine.splits.unavailable, "the vectors")
        assert has_all(engine.splits, run)
        engine.splits.check()


def test_pages_do_not_use_what_is_filled_half_way(run: SmallRun, server: ValkeyServer) -> None:
    store = open_store(server.url)
    seen: list[bool] = []
    split = Split(run.folder / "published", run.published, run.record)

    def refill() -> None:
        store.create(SPLIT_VERSION, run.published.item_vector.shape[1])
        store.put(SPLIT_VERSION, run.published.item_id[:1], run.published.item_vector[:1])
        seen.append(has_all(splits, run))
        if len(seen) == 1:
            raise UnknownVersionError("the store", "to be whole", "killed once more")
        fill_store(store, run.published, run.record)

    splits = Splits([split], store, refill=refill, retry_s=0.01)
    try:
        with pytest.raises(VectorsUnavailableError):
            splits.items(SPLIT_VERSION, run.published.item_id, Deadline(5.0))
        wait_until(lambda: not splits.unavailable, "the vectors")
        assert has_all(splits, run)
        assert seen == [False, False]
    finally:
        splits.close()
        store.close()


def test_without_a_refill_it_is_asked_again_after_a_while(run: SmallRun, server: ValkeyServer) -> None:
    now = [0.0]
    store = open_store(server.url)
    split = Split(run.folder / "published", run.published, run.record)
    splits = Splits([split], store, clock=lambda: now[0])
    assert not has_all(splits, run)
    fill_store(store, run.published, run.record)
    assert not has_all(splits, run)
    now[0] = 0.5
    assert has_all(splits, run)
    splits.close()
    store.close()


def test_closing_ends_the_wait_for_a_store_that_stays_unavailable(run: SmallRun, server: ValkeyServer) -> None:
    store = open_store(server.url)
    split = Split(run.folder / "published", run.published, run.record)
    server.kill()
    splits = Splits([split], store, refill=partial(fill_store, store, run.published, run.record), retry_s=600.0)
    assert not has_all(splits, run)
    splits.close()
    assert not has_all(splits, run)
    store.close()
