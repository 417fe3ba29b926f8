from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pocketrank.cloud.published.onnx_ranker import History
from pocketrank.cloud.published.published import PublishedError
from pocketrank.cloud.published.tower import UserTower
from tests.cloud.small_published import TOWER_HISTORY_MAX, F, SmallRun, small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("user", [0, 8])
@pytest.mark.parametrize("length", [0, 1, TOWER_HISTORY_MAX])
def test_the_vector_is_that_of_the_rows_asked_for(run: SmallRun, user: int, length: int) -> None:
    rng = np.random.default_rng(length)
    past = History(rng.integers(1, 60, length), rng.random((length, F)).astype(np.float32))
    vectors, known = run.published.item_vector[past.item], np.ones(length, np.bool_)
    got = UserTower(run.folder / "published", run.published, run.record)(user, vectors, past.feedback, known)
    np.testing.assert_allclose(got, run.expected_vector(user, past), atol=1e-5)


def test_events_without_a_vector_count_for_nothing(run: SmallRun) -> None:
    tower = UserTower(run.folder / "published", run.published, run.record)
    rng = np.random.default_rng(1)
    feedback, vectors = rng.random((4, F)).astype(np.float32), run.published.item_vector[1:5]
    known = np.array([True, False, True, False])
    np.testing.assert_allclose(
        tower(3, vectors, feedback, known), tower(3, vectors[known], feedback[known], known[known]), atol=1e-6
    )


def test_a_missing_graph_and_rows_that_do_not_fit_are_refused_at_once(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    folder = run.folder / "published"
    with pytest.raises(PublishedError, match="graph that takes the published rows"):
        UserTower(folder, replace(run.published, tower_row=run.published.tower_row[:, :-1]), run.record)
    (folder / "user_tower.onnx").unlink()
    with pytest.raises(PublishedError, match=r"user_tower\.onnx"):
        UserTower(folder, run.published, run.record)
