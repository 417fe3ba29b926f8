import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pocketrank.cloud.published.graphs import measured_threads
from pocketrank.cloud.published.onnx_ranker import History, OnnxRanker, OnnxRankerConfig
from pocketrank.cloud.published.published import Published, PublishedError
from tests.cloud.small_published import F, SmallRun, small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def ranker(run: SmallRun) -> OnnxRanker:
    published, record = Published.open(run.folder / "published")
    return OnnxRanker(run.folder / "published", published, record)


def history(length: int) -> History:
    rng = np.random.default_rng(length)
    return History(rng.integers(1, 60, length), rng.random((length, F)).astype(np.float32))


@pytest.mark.parametrize("user", [0, 3])
@pytest.mark.parametrize("length", [0, 1, 6])
@pytest.mark.parametrize("scene", [-1, 0, 1, 2, 10**12])
def test_pxtrs_are_those_of_the_rows_asked_for(run: SmallRun, ranker: OnnxRanker, user: int, length: int, scene: int) -> None:
    items = np.array([5, 1, 44, 5])
    got = ranker.pxtr(user, history(length), items, scene=scene, hour=23)
    code = {0: 1, 1: 2}.get(scene, 0)  # three codes: unknown, 0 and 1
    expected = run.expected_pxtr(user, history(length), items, scene_code=code, hour_code=24)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_no_items_have_no_pxtrs(ranker: OnnxRanker) -> None:
    assert ranker.pxtr(1, history(2), np.zeros(0, np.int64), scene=0, hour=0).shape == (0, 2)


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    (tmp_path / "published" / "ranker.onnx").unlink()
    with pytest.raises(PublishedError, match=r"ranker\.onnx"):
        OnnxRanker(tmp_path / "published", run.published, run.record)


def test_a_damaged_graph_is_named(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    path = tmp_path / "published" / "ranker.onnx"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PublishedError, match=r"ranker\.onnx"):
        OnnxRanker(tmp_path / "published", run.published, run.record)


def test_a_graph_of_another_signature_is_refused(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    folder = tmp_path / "published"
    (folder / "ranker.onnx").write_bytes((folder / "user_tower.onnx").read_bytes())
    with pytest.raises(PublishedError, match="Expected a graph"):
        OnnxRanker(folder, run.published, run.record)


def test_rows_that_do_not_fit_the_graphs_are_refused_at_once(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    narrow = replace(run.published, item_row=run.published.item_row[:, :-1])
    with pytest.raises(PublishedError, match="graphs that take the published rows"):
        OnnxRanker(tmp_path / "published", narrow, run.record)


@pytest.mark.parametrize("threads", [1, 2])
def test_more_threads_make_the_same_pxtrs(run: SmallRun, ranker: OnnxRanker, threads: int) -> None:
    other = OnnxRanker(run.folder / "published", run.published, run.record, OnnxRankerConfig(threads=threads))
    assert other.threads == threads
    items = np.arange(1, 60)
    expected = ranker.pxtr(3, history(5), items, scene=1, hour=0)
    np.testing.assert_allclose(other.pxtr(3, history(5), items, scene=1, hour=0), expected, atol=1e-6)


def test_threads_are_measured_and_leave_cores_to_other_processes() -> None:
    asked: list[int] = []

    def run(threads: int) -> Callable[[], object]:
        asked.append(threads)
        return lambda: None

    assert measured_threads(run, processes=1 << 20) == 1
    assert not asked, "with one core to itself there is nothing to try"
    assert 1 <= measured_threads(run, processes=1) <= len(os.sched_getaffinity(0))
