from __future__ import annotations

import numpy as np

from pocketrank.sdk_demo.world import World, WorldConfig

WORLD = World(WorldConfig.load())


def test_attributes_tell_a_little_of_taste() -> None:
    users = WORLD.users
    declared = users.categories[:, 3] - 1
    rows = np.arange(len(users))
    assert users.interest[rows, declared].mean() > 1.5 * users.interest.mean()
    assert users.categories.min() >= 1
    assert abs(np.corrcoef(users.floats[:, 0], np.log(users.activity))[0, 1]) > 0.3
    np.testing.assert_allclose(users.interest.sum(axis=1), 1.0)
