"""How many candidates are ranked in the time that is left, and how that time is estimated."""

from collections.abc import Iterator

import numpy as np
import pytest

from pocketrank.cloud.pages.engine import fill_stores, open_engine
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.filters import Filters, FiltersConfig
from pocketrank.cloud.pipeline.stage import Deadline, OutOfTimeError, Query, Resources
from pocketrank.cloud.published.artifacts import Artifacts
from pocketrank.cloud.ranking.rank import Rank, RankConfig
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.training.run import Run
from tests.cloud.serving.live import request
from tests.cloud.small_published import SmallRun, small_run

HOURS = 3600.0
"""Time per candidate against which the time that a test takes does not count."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def resources(run: SmallRun) -> Iterator[Resources]:
    fill_stores(Run.open(run.folder), ServingConfig())
    with open_engine(Run.open(run.folder), ServingConfig()) as engine:
        filters = Filters(FiltersConfig(), engine.catalogue, run.folder)
        yield Resources(engine.catalogue, engine.ranker, {}, filters, run.folder, Artifacts(run.folder / "artifacts"))


@pytest.fixture
def query(run: SmallRun) -> Query:
    history = UserStates(run.published, run.record)(6).history
    return Query(
        request=request(6, 5), user=6, history=history, exclude=np.zeros(1, np.int64), hour=3, deadline=Deadline(1000 * HOURS)
    )


def candidates(n: int) -> CandidateSet:
    return CandidateSet(np.arange(1, n + 1))


class Ticks:
    """A clock whose readings are given."""

    def __init__(self, *readings: float) -> None:
        self._readings = iter(readings)

    def __call__(self) -> float:
        return next(self._readings)


def test_the_time_of_a_candidate_is_a_running_mean(resources: Resources, query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = Rank(RankConfig(), resources)
    assert rank.seconds_each == 0.0
    monkeypatch.setattr("pocketrank.cloud.ranking.rank.perf_counter", Ticks(10.0, 14.0, 20.0, 24.0, 30.0, 30.0))
    rank(query, candidates(40))
    assert rank.seconds_each == pytest.approx(0.1), "the first run is the estimate"
    rank(query, candidates(20))
    assert rank.seconds_each == pytest.approx(0.1 + 0.1 * (0.2 - 0.1)), "later runs have a weight of a tenth"
    rank(query, candidates(20))
    assert rank.seconds_each == pytest.approx(0.9 * 0.11)
    assert query.degraded == []


def test_as_many_are_ranked_as_there_is_time_for_after_the_reserve(resources: Resources, query: Query, run: SmallRun) -> None:
    rank = Rank(RankConfig(candidates_min=1, reserve_ms=2 * HOURS * 1e3), resources)
    rank.seconds_each = HOURS
    query.deadline = Deadline(14.5 * HOURS)
    ranked = rank(query, candidates(20))
    assert ranked.item.tolist() == list(range(1, 13))
    expected = run.expected_pxtr(6, query.history, ranked.item, scene_code=query.request.scene + 1, hour_code=4)
    np.testing.assert_allclose(ranked.pxtr, expected, atol=1e-6)
    assert query.degraded == ["fewer_ranked"]


def test_nothing_is_left_out_when_there_is_time_for_exactly_all(resources: Resources, query: Query) -> None:
    rank = Rank(RankConfig(candidates_min=1), resources)
    rank.seconds_each = HOURS
    query.deadline = Deadline(20.5 * HOURS)
    assert len(rank(query, candidates(20))) == 20
    assert query.degraded == []


@pytest.mark.parametrize(("left", "found", "ranked"), [(10.5, 20, True), (9.5, 20, False), (5.5, 5, True), (4.5, 5, False)])
def test_with_time_for_fewer_than_the_least_the_stage_is_out_of_time(
    resources: Resources, query: Query, left: float, found: int, ranked: bool
) -> None:
    rank = Rank(RankConfig(candidates_min=10), resources)
    rank.seconds_each = HOURS
    query.deadline = Deadline(left * HOURS)
    if ranked:
        assert len(rank(query, candidates(found))) == min(10, found)
    else:
        with pytest.raises(OutOfTimeError, match=f"{int(left)} candidates"):
            rank(query, candidates(found))


def test_a_deadline_within_the_reserve_is_out_of_time_before_anything_was_measured(resources: Resources, query: Query) -> None:
    rank = Rank(RankConfig(reserve_ms=2 * HOURS * 1e3), resources)
    query.deadline = Deadline(HOURS)
    with pytest.raises(OutOfTimeError):
        rank(query, candidates(20))
    query.deadline = Deadline(3 * HOURS)
    assert len(rank(query, candidates(20))) == 20


def test_no_candidates_are_ranked_without_time(resources: Resources, query: Query) -> None:
    rank = Rank(RankConfig(), resources)
    query.deadline = Deadline(-1.0)
    ranked = rank(query, candidates(0))
    assert ranked.pxtr is not None
    assert ranked.pxtr.shape == (0, 2)
    assert rank.seconds_each == 0.0


@pytest.mark.parametrize("wrong", [{"candidates_min": 0}, {"reserve_ms": -1.0}])
def test_a_config_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="candidates_min of 1 or more and reserve_ms of 0 or more"):
        RankConfig(**wrong)  # type: ignore[arg-type]
    RankConfig(candidates_min=1, reserve_ms=0.0)
