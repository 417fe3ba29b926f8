"""Users of a log, whose responses are those of the log's impressions."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pocketrank.cloud.data.schema import ImpressionLog
from pocketrank.device.contract import check_event
from pocketrank.sdk_demo.emulator.logged import LoggedUsers
from tests.cloud.data.folders import NOON
from tests.cloud.data.logs import small_log


@pytest.fixture
def log() -> ImpressionLog:
    """User 1 likes and buys item 10 each time; item 11 was watched without a word."""
    base = small_log(
        [NOON, NOON + 1, NOON + 2, NOON + 3],
        user_id=[1, 1, 2, 2],
        item_id=[10, 10, 11, 10],
        watch_ms=[8000, 8000, 500, 8000],
        like=[True, True, None, True],
        click=[True, True, False, True],
        session_id=[1, 1, 2, 2],
    )
    impressions = base.impressions.append_column("purchase", pa.array([True, True, None, True]))
    return replace(base, impressions=impressions, actions=("purchase",))


def test_a_user_does_what_the_log_has_of_the_item(log: ImpressionLog) -> None:
    users = LoggedUsers(log)
    assert users.users.tolist() == [1, 2]
    user = users.session(2, seed=5)
    liked, silent, unknown = user.watch(10), user.watch(11), user.watch(404)
    event = liked.event(event_id="e", session_id="s", page_id="p")
    check_event(event)
    assert (event.user_id, event.item_id, event.watch_ms, event.like, event.click) == (2, 10, 8000, True, True)
    assert event.actions == ("purchase",)
    assert (liked.effective_view, silent.effective_view, unknown.effective_view) == (True, False, False)
    quiet = silent.event(event_id="f", session_id="s")
    assert (quiet.like, quiet.click, quiet.actions, quiet.position) == (False, False, (), 1)
    assert unknown.watch_ms == 0
    assert event.impression_ms > int(np.max(log.impressions["impression_ms"].to_numpy()))
    assert quiet.impression_ms >= event.impression_ms + event.watch_ms


def test_a_session_ends_and_is_the_same_for_a_seed(log: ImpressionLog) -> None:
    lengths = []
    for _ in range(2):
        user = LoggedUsers(log).session(1, seed=3)
        while user.alive:
            user.watch(10)
        lengths.append(user.position)
    assert lengths[0] == lengths[1] >= 1
