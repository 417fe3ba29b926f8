"""The moment of a request, whatever a device's clock shows. `test_skew` holds the features to those of training."""

import numpy as np
import pytest

from pocketrank.cloud.data.features import BehaviourSequence, FeatureConfig, RecentEvents, Statistic, Statistics
from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.published.moment import Moment

DAY = 86_400_000
NOW = 20_000 * DAY + 5
CONFIG = FeatureConfig(
    statistics=(Statistic(of="user", days=(1, 2)),), sequences=(BehaviourSequence(behaviour="like", length=3),)
)
STATISTICS = Statistics(CONFIG, HISTORY_FEEDBACK, (0.1,) * 5, {}, "America/New_York")
MOMENT = Moment(STATISTICS, None, clock=lambda: NOW / 1000)


def recent(*days_ago: int, likes: tuple[int, ...] = ()) -> RecentEvents:
    feedback = np.zeros((len(days_ago), len(HISTORY_FEEDBACK)), np.float32)
    feedback[list(likes), HISTORY_FEEDBACK.index("like")] = 1
    return RecentEvents(1 + np.arange(len(days_ago)), NOW - DAY * np.array(days_ago, np.int64), feedback)


def counts(now_ms: int, events: RecentEvents) -> list[float]:
    """Events of a window of one and of two days."""
    found: list[float] = np.expm1(4 * MOMENT(np.array([7, 8]), now_ms, events).statistics[0]).round(3).tolist()
    return found


def test_a_clock_that_is_right_is_believed() -> None:
    assert counts(NOW, recent(3, 1, 0, 0)) == [2, 3]
    assert counts(NOW, recent(3, 2, 1)) == [0, 1]


@pytest.mark.parametrize("now_ms", [-(2**63), -1, 0, NOW - 400 * DAY])
def test_no_moment_is_before_the_last_event(now_ms: int) -> None:
    assert counts(now_ms, recent(3, 2, 1)) == [1, 2]
    assert counts(now_ms, recent()) == [0, 0]


@pytest.mark.parametrize("now_ms", [NOW + 1, NOW + 400 * DAY, 2**63 - 1])
def test_no_moment_is_after_the_clock_of_the_server(now_ms: int) -> None:
    assert counts(now_ms, recent(3, 1, 0, 0)) == [2, 3]


def test_a_sequence_has_the_latest_items_of_its_behaviour() -> None:
    item, mask = MOMENT(np.array([7]), NOW, recent(4, 3, 2, 1, 0, likes=(0, 1, 2, 4)))[1:]
    assert (item.tolist(), mask.tolist()) == ([[2, 3, 5]], [[1, 1, 1]])
    item, mask = MOMENT(np.array([7]), NOW, recent(1, 0, likes=(1,)))[1:]
    assert (item.tolist(), mask.tolist()) == ([[0, 0, 2]], [[0, 0, 1]])
