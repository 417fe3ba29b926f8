from __future__ import annotations

import numpy as np
import pytest

from pocketrank.sdk_demo.world import LoggingPolicy, World, WorldConfig, WorldError

WORLD = World(WorldConfig.load())


def closed_loop(order: str, sessions: int = 200) -> float:
    """Effective views per session when a page of 30 is shown ten at a time in some order."""
    policy = LoggingPolicy(WORLD.config.policy, WORLD.items, WORLD.users, seed=11)
    shown = WORLD.config.policy.shown
    views = 0
    for n in range(sessions):
        user = 1 + n * 7 % len(WORLD.users)
        session = WORLD.session(user, seed=n)
        seen = np.zeros((1, len(WORLD.items)), dtype=np.bool_)
        while session.alive:
            page = policy.pages(np.array([user - 1]), np.array([session.now_ms]), seen)[0] + 1
            for _ in range(shown):
                best = int(session.probabilities(page)["effective_view"].argmax()) if order == "oracle" else 0
                outcome = session.watch(int(page[best]))
                seen[0, page[best] - 1] = True
                page = np.delete(page, best)
                views += outcome.effective_view
                if not outcome.has_next:
                    break
    return views / sessions


def test_oracle_beats_the_logging_order() -> None:
    assert closed_loop("oracle") >= 1.25 * closed_loop("cloud")


def test_seed_makes_the_world() -> None:
    assert np.array_equal(World(WorldConfig.load()).items.vector, WORLD.items.vector)
    other = World(WorldConfig.load(), seed=WORLD.config.seed + 1)
    assert other.config.seed == WORLD.config.seed + 1
    assert not np.array_equal(other.items.vector, WORLD.items.vector)
    with pytest.raises(WorldError, match="seed"):
        World(WorldConfig.load(), seed=-1)
