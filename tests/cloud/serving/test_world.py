import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cloud.serving import world
from cloud.serving.config import ServingConfig
from cloud.serving.world import fill_stores
from cloud.stores.base import StoreWriteError
from cloud.stores.mapped import MappedStore
from cloud.training.run import Run
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


def test_a_table_that_is_removed_by_hand_is_missed_by_no_other_and_put_anew_at_the_next_start(run: SmallRun) -> None:
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


def test_a_server_waits_for_another_one_that_fills_the_same_files(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    other = MappedStore(run.folder / "vectors")
    other.create(SPLIT_VERSION, 8)  # it is the writer now
    monkeypatch.setattr(world, "OTHER_S", 0.0)
    with pytest.raises(StoreWriteError, match="another process that writes"):
        fill_stores(Run.open(run.folder), ServingConfig())
    monkeypatch.setattr(world, "OTHER_S", 60.0)
    with ThreadPoolExecutor(1) as pool:
        filling = pool.submit(fill_stores, Run.open(run.folder), ServingConfig())
        other.close()
        filling.result()
    assert rows(run) == 61
