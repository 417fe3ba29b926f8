from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest

from pocketrank.device.contract import Ended, FeedbackEvent
from pocketrank.sdk_demo.world import TASKS, Outcome, SessionOverError, UnknownIdError, UserSession, World, WorldError
from tests.sdk_demo.world.worlds import small

WORLD = World(small())


def run(session: UserSession, items: list[int]) -> list[Outcome]:
    outcomes = []
    for item in items:
        if not session.alive:
            break
        outcomes.append(session.watch(item))
    return outcomes


def path_of(session: UserSession, items: list[int]) -> list[tuple[object, ...]]:
    """What of a session's path can be told from outside whatever was shown: carrier and battery saver."""
    return [(o.network, o.battery_saver) for o in run(session, items)]


def test_session_is_deterministic_and_worlds_agree() -> None:
    items = list(range(1, 200))
    again = World(small())
    for user in range(1, 30):
        assert run(WORLD.session(user, seed=5), items) == run(again.session(user, seed=5), items)
    assert run(WORLD.session(1, seed=5), items) != run(WORLD.session(1, seed=6), items)
    assert run(WORLD.session(1, seed=5), items) != run(WORLD.session(2, seed=5), items)


def test_equal_luck_whatever_is_shown() -> None:
    for user in range(1, 60):
        one = path_of(WORLD.session(user, seed=1), list(range(1, 60)))
        two = path_of(WORLD.session(user, seed=1), list(range(400, 460)))
        both = min(len(one), len(two))
        assert one[:both] == two[:both]


def test_asking_moves_nothing() -> None:
    items = list(range(1, 100))
    for user in range(1, 20):
        asked = WORLD.session(user, seed=2)
        outcomes = []
        for item in items:
            if not asked.alive:
                break
            before = (asked.position, asked.now_ms)
            asked.probabilities(np.arange(1, 31))
            assert (asked.position, asked.now_ms) == before
            outcomes.append(asked.watch(item))
        assert outcomes == run(WORLD.session(user, seed=2), items)


def test_outcome_luck_is_that_of_session_position_and_item() -> None:
    """An item that is better now never gets a shorter watch from the same luck; the previous item is all that differs."""
    pairs = 0
    for user in range(1, 151):
        first, second = WORLD.session(user, seed=3), WORLD.session(user, seed=3)
        if not (first.watch(10).has_next and second.watch(20).has_next):
            continue
        chance = [float(s.probabilities(np.array([30]))["effective_view"][0]) for s in (first, second)]
        watched = [s.watch(30).watch_ms for s in (first, second)]
        assert (watched[0] - watched[1]) * (chance[0] - chance[1]) >= 0
        pairs += watched[0] != watched[1]
    assert pairs > 50


def test_outcome_is_an_event_of_the_contract() -> None:
    session = WORLD.session(7, seed=1, start_ms=1_000)
    assert (session.user_id, session.position, session.now_ms, session.alive) == (7, 0, 1_000, True)
    outcome = session.watch(11)
    event = outcome.event(event_id="e", session_id="s", page_id="p")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=FeedbackEvent) == event
    assert (event.user_id, event.item_id, event.position, event.impression_ms) == (7, 11, 0, 1_000)
    info = msgspec.structs.fields(FeedbackEvent)
    device_only = {field.name for field in info if field.default is None and field.name not in ("page_id", "experiment")}
    assert len(device_only) == 12
    assert all(getattr(event, name) is not None for name in device_only)
    assert {f.name for f in dataclasses.fields(Outcome)} >= device_only
    assert session.position == 1
    assert session.now_ms >= 1_000 + outcome.watch_ms + outcome.buffering_ms


def test_a_user_who_left_is_shown_nothing() -> None:
    session = WORLD.session(3, seed=1)
    outcomes = run(session, list(range(1, 400)))
    assert not session.alive
    assert [o.has_next for o in outcomes] == [True] * (len(outcomes) - 1) + [False]
    assert outcomes[-1].ended in (Ended.EXIT, Ended.BACKGROUND)
    with pytest.raises(SessionOverError, match="alive"):
        session.watch(1)


@pytest.mark.parametrize("item", [0, -1, 801])
def test_unknown_ids_are_refused(item: int) -> None:
    session = WORLD.session(3, seed=1)
    with pytest.raises(UnknownIdError, match=r"1\.\.800"):
        session.watch(item)
    with pytest.raises(UnknownIdError, match=str(item)):
        session.probabilities(np.array([1, item]))
    assert session.position == 0
    with pytest.raises(UnknownIdError, match="user_id"):
        WORLD.session(151, seed=1)
    with pytest.raises(WorldError, match="seed"):
        WORLD.session(1, seed=-1)


def test_no_items_no_probabilities() -> None:
    table = WORLD.session(1, seed=1).probabilities(np.array([], dtype=np.int64))
    assert {task: values.shape for task, values in table.items()} == dict.fromkeys(TASKS, (0,))


def test_default_start_is_after_the_log() -> None:
    log = WORLD.config.log
    starts = {WORLD.session(user, seed=1).now_ms for user in range(1, 20)}
    assert min(starts) >= log.start_ms + log.days * 86_400_000
    assert len(starts) > 10


def test_who_knows_items_and_users_foresees_better_than_chance_and_worse_than_the_oracle() -> None:
    """Over many sessions of random items: log loss of the filter, of the truth, and of the mean rate."""
    rng, loss = np.random.default_rng(0), {"informed": 0.0, "oracle": 0.0}
    seen: list[bool] = []
    for user in range(1, 60):
        session = WORLD.session(user, seed=3)
        while session.alive and session.position < 30:
            item = rng.integers(1, len(WORLD.items) + 1, 1)
            expected = {"informed": session.expected(item)[0], "oracle": session.probabilities(item)["effective_view"][0]}
            outcome = session.watch(int(item[0]))
            seen.append(outcome.effective_view)
            for name, p in expected.items():
                loss[name] -= np.log(p if outcome.effective_view else 1 - p)
    mean = np.mean(seen)
    chance = -len(seen) * (mean * np.log(mean) + (1 - mean) * np.log(1 - mean))
    assert loss["oracle"] < loss["informed"] < chance


def test_expecting_moves_nothing() -> None:
    items = list(range(1, 60))
    for user in range(1, 10):
        asked = WORLD.session(user, seed=2)
        outcomes = []
        for item in items:
            if not asked.alive:
                break
            asked.expected(np.arange(1, 31))
            outcomes.append(asked.watch(item))
        assert outcomes == run(WORLD.session(user, seed=2), items)
