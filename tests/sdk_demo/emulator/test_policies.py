import numpy as np
import pytest

from device import FeedSession
from device.codec import to_block
from device.contract import Candidates, Columns, Page
from sdk_demo.emulator.policies import POLICIES, CloudOrder, OnDevice, Oracle
from sdk_demo.world import UserSession, World
from tests.sdk_demo.world.worlds import small

ITEMS = [7, 300, 41, 12, 99, 500, 8]


@pytest.fixture(scope="module")
def world() -> World:
    return World(small())


def _feed(user: UserSession) -> FeedSession:
    feed = FeedSession(None, user_id=user.user_id, session_id="s", clock=lambda: user.now_ms)
    ids = np.array(ITEMS)
    nothing = Columns(names=(), values=to_block(np.zeros((len(ids), 0)), "f4"))
    codes = Columns(names=(), values=to_block(np.zeros((len(ids), 0), np.int64), "i4"))
    feed.take(
        Page(
            page_id="p",
            request_id="r",
            created_ms=0,
            ttl_ms=10**9,
            candidates=Candidates(item_id=to_block(ids, "i8"), floats=nothing, categories=codes),
        )
    )
    return feed


@pytest.mark.parametrize("policy", [CloudOrder(None), OnDevice(None)])
def test_without_a_model_the_order_is_the_clouds(policy: CloudOrder | OnDevice, world: World) -> None:
    user = world.session(3, seed=0)
    feed = _feed(user)
    assert [policy.pick(feed, user) for _ in range(len(ITEMS) + 1)] == [*ITEMS, None]


def test_the_oracle_shows_what_is_most_likely_to_be_viewed_of_what_is_left(world: World) -> None:
    user, policy = world.session(3, seed=0), Oracle(None)
    feed, left = _feed(user), list(ITEMS)
    while user.alive and left:
        item = policy.pick(feed, user)
        chances = user.probabilities(np.array(left))["effective_view"]
        assert item == left[int(chances.argmax())]
        left.remove(item)
        feed.feedback(user.watch(item).event(event_id=f"e{len(left)}", session_id="s"))
        assert sorted(feed.remaining.tolist()) == sorted(left)
    assert len(left) < len(ITEMS)
    assert _feed(user).position == 0


def test_the_oracle_has_nothing_to_show_of_nothing(world: World) -> None:
    user = world.session(3, seed=0)
    assert Oracle(None).pick(FeedSession(None, user_id=3, session_id="s"), user) is None


def test_policies_are_known_by_their_names() -> None:
    assert list(POLICIES) == ["cloud_order", "on_device", "oracle"]
    assert all(kind.name == name for name, kind in POLICIES.items())
