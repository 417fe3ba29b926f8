from dataclasses import replace

import msgspec
import numpy as np
import pytest

from pocketrank.device import Bundle, FeedSession
from pocketrank.device.codec import to_block
from pocketrank.device.contract import Candidates, Columns, Page, SearchSpec
from pocketrank.device.model.search import GREEDY
from pocketrank.device.paging import PagingState
from pocketrank.sdk_demo.emulator.errors import PolicyError
from pocketrank.sdk_demo.emulator.policies import (
    DEFAULT_POLICIES,
    POLICIES,
    Beam,
    CloudOrder,
    Greedy,
    OnDevice,
    Oracle,
    Policy,
    Refreshed,
)
from pocketrank.sdk_demo.world import UserSession, World
from tests.sdk_demo.conftest import SmallDemo
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


@pytest.mark.parametrize("policy", [CloudOrder(None), Refreshed(None), Greedy(None), Beam(None), OnDevice(None)])
def test_without_a_model_the_order_is_the_clouds(policy: Policy, world: World) -> None:
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
    assert list(POLICIES) == ["cloud_order", "refreshed", "greedy", "beam", "on_device", "informed", "oracle"]
    assert all(kind.name == name for name, kind in POLICIES.items())
    assert set(DEFAULT_POLICIES) < set(POLICIES)


def test_refreshed_asks_again_after_six_of_its_page() -> None:
    assert Refreshed.paging is not None
    asked = [Refreshed.paging(PagingState(30 - shown, shown, 0, 600_000, 1.0)) for shown in range(8)]
    assert [decision.request for decision in asked] == [False] * 6 + [True] * 2
    assert {decision.size for decision in asked} == {30}
    assert all(kind.paging is None for kind in POLICIES.values() if kind is not Refreshed), "the same rule for all others"


def test_each_search_is_a_rankers_own(small_demo: SmallDemo) -> None:
    bundle = Bundle.open(small_demo.out / "bundle")
    rankers = {name: kind(bundle).ranker for name, kind in POLICIES.items()}
    searches = {name: ranker.search for name, ranker in rankers.items() if ranker is not None}
    assert searches == {
        "greedy": GREEDY,
        "beam": bundle.spec.search or SearchSpec(),
        "on_device": bundle.spec.search or GREEDY,
    }
    assert searches["beam"].beam > 1
    assert [name for name, kind in POLICIES.items() if kind.uses_models] == list(searches)


def test_a_model_that_cannot_search_lists_is_no_beam(small_demo: SmallDemo) -> None:
    bundle = Bundle.open(small_demo.out / "bundle")
    whole = tuple(model for model in bundle.manifest.models if model.stage == "whole")
    bare = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, models=whole))
    with pytest.raises(PolicyError, match=r"Expected a bundle with a model for lists, got one with whole .*- at beam"):
        Beam(bare)
