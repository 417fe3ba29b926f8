from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.sdk_demo.world import TASKS, World
from pocketrank.sdk_demo.world.luck import keys_from, step_keys
from pocketrank.sdk_demo.world.response import ResponseModel
from pocketrank.sdk_demo.world.state import State
from tests.sdk_demo.world.worlds import small

WORLD = World(small())
MODEL = ResponseModel(WORLD.config, WORLD.items, WORLD.users)


def warmed(user: int, seed: int, steps: int) -> State:
    """The state of one session after some impressions, alive or not."""
    state = MODEL.path.start(keys_from(seed), np.array([user]), np.array([WORLD.config.log.start_ms]))
    for step in range(steps):
        MODEL.watch(state, np.array([(user * 37 + step * 11) % len(WORLD.items)]))
    return state


def test_probabilities_are_the_frequencies_of_outcomes() -> None:
    n = 40_000
    for user, seed, steps, item in ((3, 1, 0, 5), (77, 2, 6, 300), (140, 3, 15, 41)):
        one = warmed(user, seed, steps)
        told = MODEL.probabilities(one, np.array([[item]]))
        # The same hidden moment n times with other luck: only the key differs.
        many = one.take(np.zeros(n, dtype=np.int64))
        many.key = step_keys(keys_from(99, batch=n), 0, np.arange(n))
        outcomes = MODEL.watch(many, np.full(n, item))
        for task in TASKS:
            p = float(told[task][0, 0])
            assert abs(getattr(outcomes, task).mean() - p) < 4.5 * np.sqrt(p * (1 - p) / n) + 1 / n, (task, user)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 149), st.integers(0, 1000), st.integers(0, 25), st.lists(st.integers(0, 799), min_size=1, max_size=40))
def test_probabilities_hold_their_order_and_do_not_depend_on_the_list(
    user: int, seed: int, steps: int, items: list[int]
) -> None:
    state = warmed(user, seed, steps)
    table = MODEL.probabilities(state, np.array([items]))
    assert tuple(table) == TASKS
    for values in table.values():
        assert values.shape == (1, len(items))
        assert ((values >= 0) & (values <= 1)).all()
    assert (table["long_view"] <= table["effective_view"]).all()
    assert (table["like"] <= table["effective_view"]).all()
    assert (table["follow"] <= table["long_view"]).all()
    alone = MODEL.probabilities(state, np.array([[items[-1]]]))
    for task in TASKS:
        np.testing.assert_allclose(alone[task][0, 0], table[task][0, -1], rtol=1e-12)


def test_batch_and_single_sessions_are_the_same_computation() -> None:
    users, start = np.arange(20), np.full(20, WORLD.config.log.start_ms)
    keys = step_keys(keys_from(4, batch=20), 0, users)
    batch = MODEL.path.start(keys, users, start)
    singles = [MODEL.path.start(keys[u : u + 1], users[u : u + 1], start[u : u + 1]) for u in users]
    for step in range(12):
        items = (users * 13 + step * 7) % len(WORLD.items)
        together = MODEL.watch(batch, items)
        for u, single in enumerate(singles):
            alone = MODEL.watch(single, items[u : u + 1])
            assert alone.watch_ms[0] == together.watch_ms[u]
            assert alone.has_next[0] == together.has_next[u]
            assert alone.signals.scroll_speed[0] == together.signals.scroll_speed[u]


def test_satiation_and_sameness_lower_what_is_repeated() -> None:
    items = WORLD.items
    topic = items.category
    author_rows = np.flatnonzero(items.author_id == np.bincount(items.author_id).argmax())
    shown, again = int(author_rows[0]), int(author_rows[1])
    other = int(np.flatnonzero(topic != topic[shown])[0])
    lost = []
    for seed in range(60):
        gains = []
        for first in (shown, other):
            state = MODEL.path.start(keys_from(seed), np.array([seed]), np.array([0]))
            MODEL.watch(state, np.array([first]))
            gains.append(MODEL.probabilities(state, np.array([[again]]))["effective_view"][0, 0])
        lost.append(gains[1] - gains[0])
    assert min(lost) > 0  # the hidden path is the same in both, so only the previous item differs


def test_last_position_ends_every_session() -> None:
    state = warmed(1, 1, 0)
    state.step = np.array([WORLD.config.session.max_impressions - 1])
    assert MODEL.probabilities(state, np.array([[0, 1]]))["has_next"].max() == 0.0
    assert not MODEL.watch(state, np.array([0])).has_next[0]
