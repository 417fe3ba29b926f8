"""Counts that go on from those of the training."""

import numpy as np
import pytest

from pocketrank.cloud.data.features import FeatureConfig, Statistic, Statistics
from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.pages.live_counts import LiveCounts
from pocketrank.cloud.published.published import PublishedFeatures

DAY = 86_400_000
NEWEST = 20_000
LIKE = HISTORY_FEEDBACK.index("like")
CONFIG = FeatureConfig(statistics=(Statistic(of="author", days=(1, 3), rates=("like",)),))
AUTHORS = np.array([0, 1, 1, 2, 0])  # by item; the last item's is unknown


@pytest.fixture
def counts() -> LiveCounts:
    return made()


def made() -> LiveCounts:
    features = PublishedFeatures(
        config=CONFIG, means=(0.1,) * 5, days=(NEWEST - 2, NEWEST - 1, NEWEST), until_ms=NEWEST * DAY + 1000
    )
    published = {"author": np.arange(18, dtype=np.float32).reshape(3, 3, 2)}
    return LiveCounts(published, features, Statistics(CONFIG, HISTORY_FEEDBACK, (0.1,) * 5, {"author": AUTHORS}, "UTC"))


def add(counts: LiveCounts, item: int, ms: int, like: bool = True, *, remove: bool = False) -> None:
    feedback = np.zeros((1, len(HISTORY_FEEDBACK)), np.float32)
    feedback[0, LIKE] = like
    (counts.remove if remove else counts.add)(np.array([item]), np.array([ms]), feedback)


def of(counts: LiveCounts, days: int, now_ms: int = NEWEST * DAY) -> list[list[float]]:
    found: list[list[float]] = counts.as_of(now_ms)("author", days, np.array([0, 1, 2])).tolist()
    return found


def test_a_window_is_the_days_of_the_training_and_what_came_after_it(counts: LiveCounts) -> None:
    assert of(counts, 1) == [[0, 0], [14, 15], [16, 17]]
    add(counts, 1, NEWEST * DAY + 2000)
    add(counts, 2, NEWEST * DAY + 2000, like=False)
    add(counts, 3, (NEWEST - 1) * DAY, like=False)  # the training has counted it
    add(counts, 4, NEWEST * DAY + 2000)  # of no known author
    add(counts, 0, NEWEST * DAY + 2000)  # of no known item
    assert of(counts, 1) == [[0, 0], [16, 16], [16, 17]]
    assert of(counts, 3) == [[0, 0], [2 + 8 + 16, 3 + 9 + 16], [4 + 10 + 16, 5 + 11 + 17]]


def test_windows_move_on_with_the_newest_event_or_the_day_of_the_request(counts: LiveCounts) -> None:
    tomorrow = (NEWEST + 1) * DAY
    assert of(counts, 1, tomorrow) == [[0, 0], [0, 0], [0, 0]]
    assert of(counts, 1) == [[0, 0], [14, 15], [16, 17]], "asking has not moved it"
    add(counts, 3, tomorrow)
    assert of(counts, 1, 0) == [[0, 0], [0, 0], [1, 1]]
    assert of(counts, 3, 0) == [[0, 0], [8 + 14, 9 + 15], [10 + 16 + 1, 11 + 17 + 1]]


def test_days_that_no_window_reaches_are_forgotten(counts: LiveCounts) -> None:
    add(counts, 1, (NEWEST + 1) * DAY)
    add(counts, 1, (NEWEST + 9) * DAY)
    add(counts, 1, (NEWEST + 2) * DAY)  # arrived too late
    assert {saved.day for saved in counts.copy()} == {NEWEST + 9}


def test_a_copy_restores_what_was_counted(counts: LiveCounts) -> None:
    for item, day in [(1, 0), (2, 0), (3, 1), (1, 1)]:
        add(counts, item, (NEWEST + day) * DAY + 2000, like=item > 1)
    again = made()
    again.restore(counts.copy())
    assert again.newest_day == NEWEST + 1
    assert of(again, 3) == of(counts, 3) != of(made(), 3)
    assert again.copy() == counts.copy()


def test_what_is_taken_out_was_never_counted(counts: LiveCounts) -> None:
    add(counts, 1, NEWEST * DAY + 2000)
    add(counts, 1, NEWEST * DAY + 2000, remove=True)
    add(counts, 3, NEWEST * DAY - 5, remove=True)  # of the training
    add(counts, 3, (NEWEST + 30) * DAY, remove=True)  # of a day without events
    assert of(counts, 3) == of(made(), 3)
