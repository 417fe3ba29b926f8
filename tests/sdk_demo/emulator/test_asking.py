import math

import numpy as np
import pytest

from pocketrank.device.paging import FEATURES, PagingState
from pocketrank.sdk_demo.emulator.asking import RandomAsking, RandomConfig, RandomPaging, uplift_log
from pocketrank.sdk_demo.emulator.records import RandomDecision, SessionRecord
from pocketrank.sdk_demo.world import World
from tests.sdk_demo.world.worlds import small

HELD = PagingState(9, 1, 0, 600_000, 1.0, 0.5, 0.4, 0.6, 1, 1.0)
NOTHING = PagingState(0, 0, 0, 0, 1.0)


def _paging(seed: int, **config: tuple[float, ...]) -> RandomPaging:
    return RandomPaging(np.random.default_rng(seed), RandomConfig(**config))  # type: ignore[arg-type]


def test_it_asks_as_often_as_it_says_and_for_every_size() -> None:
    paging = _paging(0, rates=(0.3,))
    decisions = [paging(HELD) for _ in range(2000)]
    assert np.mean([decision.request for decision in decisions]) == pytest.approx(0.3, abs=0.04)
    assert {decision.probability for decision in paging.decisions} == {0.3}
    assert {decision.size for decision in decisions} == set(RandomConfig().sizes)
    assert [(d.asked, d.size) for d in paging.decisions] == [(d.request, d.size) for d in decisions]


def test_what_every_policy_asks_for_is_no_chance() -> None:
    paging = _paging(0, rates=(0.3,))
    assert paging(NOTHING).request
    assert paging(HELD._replace(age_ms=600_000)).reason == "stale"
    assert [decision.probability for decision in paging.decisions] == [1.0, 1.0]


def test_a_session_has_its_own_luck_each_time_it_is_played() -> None:
    policy, world = RandomAsking(None), World(small())

    def played(user: int, seed: int) -> list[RandomDecision]:
        paging = policy.paging_for(world.session(user, seed=seed))
        for _ in range(50):
            paging(HELD)
        return paging.decisions

    assert played(1, 0) == played(1, 0)
    assert played(1, 0) != played(2, 0)


def test_a_log_has_each_impression_with_the_page_that_it_is_from() -> None:
    went_on = RandomDecision(HELD, False, 60, 0.06)
    record = SessionRecord(
        "random_asking",
        user_id=1,
        effective=[True, False, True, False],
        decisions=[
            RandomDecision(NOTHING, True, 9, 1.0),
            went_on,
            RandomDecision(HELD, True, 30, 0.06),
            went_on,
            RandomDecision(HELD, True, 30, 0.06),  # the server had nothing new: nothing was shown behind it
        ],
    )
    log = uplift_log([record, record])
    assert log.session.tolist() == [0] * 4 + [1] * 4
    assert log.effective[:4].tolist() == [True, False, True, False]
    assert log.asked[:4].tolist() == [True, False, True, False]
    assert log.size[:4].tolist() == [9, 9, 30, 30]
    assert log.depth[:4].tolist() == [0, 1, 0, 1]
    assert np.isnan(log.x[0]).all()
    assert log.x[1, FEATURES.index("best")] == 0.5
    assert log.x[1, FEATURES.index("left")] == math.log(10)
    assert log.simulated
