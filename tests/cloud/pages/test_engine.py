import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from pocketrank.cloud.pages.engine import fill_stores, open_engine
from pocketrank.cloud.pages.renewal import Renewal
from pocketrank.cloud.pipeline.config import PipelineConfig, StoreConfig
from pocketrank.cloud.pipeline.stage import Deadline
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.stores.base import StoreUnavailableError, StoreWriteError
from pocketrank.cloud.stores.mapped import MappedStore
from pocketrank.cloud.training.run import Run
from tests.cloud.serving.running import until
from tests.cloud.small_published import SPLIT_VERSION, SmallRun, small_run


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return small_run(tmp_path / "run")


def rows(run: SmallRun) -> int:
    store = MappedStore(run.folder / "vectors")
    found = store.get(SPLIT_VERSION, np.asarray(run.published.item_id)).found
    store.close()
    return int(found.sum())


def test_vectors_are_put_in_place_once(run: SmallRun) -> None:
    for _ in range(2):
        fill_stores(Run.open(run.folder), ServingConfig())
        assert rows(run) == 61, "60 items and the unknown one"
    store = MappedStore(run.folder / "vectors")
    store.delete(SPLIT_VERSION, run.published.item_id[5:50])  # as if another had died on the way
    store.close()
    fill_stores(Run.open(run.folder), ServingConfig())
    assert rows(run) == 61


def test_a_table_that_is_removed_by_hand_is_written_again_at_the_next_start_and_no_other_is(run: SmallRun) -> None:
    vectors, ids = run.folder / "vectors", np.asarray(run.published.item_id)
    fill_stores(Run.open(run.folder), ServingConfig())
    old = MappedStore(vectors)
    old.create("0ld", 8)
    old.close()
    serving = MappedStore(vectors)
    assert set(serving.versions()) == {"0ld", SPLIT_VERSION}
    shutil.rmtree(vectors / "v-0ld")
    assert rows(run) == 61
    shutil.rmtree(vectors / f"v-{SPLIT_VERSION}")
    assert serving.get(SPLIT_VERSION, ids).found.all(), "whoever has it open keeps it"
    fill_stores(Run.open(run.folder), ServingConfig())
    assert rows(run) == 61
    later = MappedStore(vectors)
    assert set(later.versions()) == {SPLIT_VERSION}
    later.close()
    serving.close()


def test_a_server_waits_for_another_one_that_fills_the_same_files(run: SmallRun) -> None:
    other = MappedStore(run.folder / "vectors")
    other.create(SPLIT_VERSION, 8)  # it is the writer now
    with pytest.raises(StoreWriteError, match="another process that writes"):
        fill_stores(Run.open(run.folder), ServingConfig(), wait_s=0)
    with ThreadPoolExecutor(1) as pool:
        filling = pool.submit(fill_stores, Run.open(run.folder), ServingConfig())
        other.close()
        filling.result()
    assert rows(run) == 61


def test_a_former_run_of_the_same_split_version_does_not_replace_the_served_one(run: SmallRun, tmp_path: Path) -> None:
    former = [Run.open(small_run(tmp_path / name, seed=seed, split_version=version).folder) for name, seed, version in
              (("same", 1, SPLIT_VERSION), ("older", 2, "0lder"), ("oldest", 3, "0lder"))]  # fmt: skip
    opened, config, ids = Run.open(run.folder), ServingConfig(), np.asarray(run.published.item_id)
    fill_stores(opened, config, former)
    with open_engine(opened, config, former) as engine:
        assert engine.splits.versions == {SPLIT_VERSION, "0lder"}
        for version, published in ((SPLIT_VERSION, run.published), ("0lder", Published.open(former[1].published)[0])):
            np.testing.assert_array_equal(engine.splits.items(version, ids, Deadline(10)).vectors, published.item_vector)


def test_vectors_do_not_expire_while_a_server_needs_them(run: SmallRun) -> None:
    config = ServingConfig(pipeline=PipelineConfig(store=StoreConfig(ttl_days=4 / 86_400)))
    fill_stores(Run.open(run.folder), config)
    store = MappedStore(run.folder / "vectors")

    def expires_s() -> float:
        table = store.versions().get(SPLIT_VERSION)
        return 0.0 if table is None else table.expires_s or math.inf

    first = expires_s()
    assert time.time() < first < math.inf
    with open_engine(Run.open(run.folder), config):
        until(lambda: expires_s() > first, "a renewal")
    last = expires_s()
    until(lambda: time.time() > last, "the end of the time to live")
    assert not store.versions(), "nobody needs them any more"
    store.close()


def test_a_renewal_that_fails_is_retried() -> None:
    calls, enough = [0], Event()

    def renew() -> None:
        calls[0] += 1
        if calls[0] == 3:
            enough.set()
        raise StoreUnavailableError("the store", "an answer", "none")

    renewal = Renewal(renew, ttl_s=0.04)
    assert enough.wait(10)
    renewal.close()
    after = calls[0]
    renewal.close()
    assert calls[0] == after


@pytest.mark.parametrize("days", [0.0, -1.0, math.nan, math.inf, 1e9])
def test_a_time_to_live_that_makes_no_sense_is_refused(days: float) -> None:
    with pytest.raises(ValueError, match="ttl_days"):
        StoreConfig(ttl_days=days)
