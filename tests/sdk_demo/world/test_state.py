from __future__ import annotations

import numpy as np

from pocketrank.sdk_demo.world import World
from pocketrank.sdk_demo.world.luck import keys_from, step_keys
from pocketrank.sdk_demo.world.response import ResponseModel
from pocketrank.sdk_demo.world.state import SessionPath, State
from tests.sdk_demo.world.worlds import small

WORLD = World(small())
MODEL = ResponseModel(WORLD.config, WORLD.items, WORLD.users)
OWN_PATH = ("key", "user", "step", "focus", "drift", "mood", "network", "wifi", "saver", "intent", "feeling")


def begin(batch: int) -> State:
    users = np.arange(batch) % len(WORLD.users)
    keys = step_keys(keys_from(8, batch=batch), 0, np.arange(batch))
    return MODEL.path.start(keys, users, np.full(batch, WORLD.config.log.start_ms))


def test_path_is_the_same_whatever_is_shown() -> None:
    one, two = begin(100), begin(100)
    for step in range(40):
        MODEL.watch(one, (np.arange(100) + step) % 800)
        MODEL.watch(two, (np.arange(100) * 7 + step * 31 + 400) % 800)
        for name in OWN_PATH:
            assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert not np.array_equal(one.satiation, two.satiation)
    assert not np.array_equal(one.now_ms, two.now_ms)


def test_path_keeps_its_stationary_law() -> None:
    path = SessionPath(WORLD.config, WORLD.items, WORLD.users)
    state = begin(6000)
    first = state.focus
    bound = 6 / np.sqrt(6000)
    for step in range(31):
        if step % 10 == 0:
            assert np.abs(state.mood.mean(axis=0)).max() < bound
            assert np.abs(state.mood.std(axis=0) - 1).max() < bound
            assert abs(state.network.std() - 1) < bound
            assert abs((state.drift**2).sum(axis=1).mean() - 1) < bound
            assert abs(state.wifi.mean() - WORLD.users.wifi[state.user].mean()) < bound
        path.advance(state)
    stayed = (state.focus == first).mean()
    # A jump may land where it came from, so more stay than never jump.
    assert (1 - WORLD.config.session.jump_rate) ** 31 < stayed < 0.9


def test_focus_follows_interest() -> None:
    state = begin(6000)
    share = WORLD.users.interest[state.user, state.focus].mean()
    by_law = (WORLD.users.interest[state.user] ** 2).sum(axis=1).mean()
    stray = WORLD.config.session.stray_share
    expected = (1 - stray) * by_law + stray / WORLD.config.catalogue.topics
    assert abs(share - expected) < 0.02


def test_take_copies_the_chosen_sessions() -> None:
    state = begin(10)
    part = state.take(np.arange(10) % 2 == 1)
    assert len(part) == 5
    assert part.user.tolist() == [1, 3, 5, 7, 9]
    before = state.satiation.copy()
    part.satiation += 1.0
    assert np.array_equal(state.satiation, before)
