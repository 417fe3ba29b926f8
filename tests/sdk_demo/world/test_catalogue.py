from __future__ import annotations

import numpy as np

from pocketrank.sdk_demo.world import World, WorldConfig

WORLD = World(WorldConfig.load())


def test_catalogue_covers_what_it_promises() -> None:
    items, c = WORLD.items, WORLD.config.catalogue
    assert len(items) == c.items
    assert items.item_id.tolist() == list(range(1, c.items + 1))
    assert set(items.category) == set(range(1, c.topics + 1))
    np.testing.assert_allclose(np.linalg.norm(items.vector, axis=1), 1.0, atol=1e-5)
    assert (np.diff(items.upload_ms) >= 0).all()
    assert np.isclose((items.upload_ms < WORLD.config.log.start_ms).mean(), c.initial_share, atol=0.01)
    seconds = items.duration_ms / 1000
    assert seconds.min() >= c.duration_min_s
    assert seconds.max() <= c.duration_max_s
    assert 20 <= np.median(seconds) <= 40
    is_long = items.category > c.topics - c.long_topics
    assert np.median(seconds[is_long]) > 2 * np.median(seconds[~is_long])
    home = (items.vector @ items.centres.T).argmax(axis=1) + 1
    assert (home == items.category).mean() > 0.7
