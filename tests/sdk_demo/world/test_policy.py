from __future__ import annotations

import msgspec
import numpy as np

from pocketrank.sdk_demo.world import LoggingPolicy, World
from tests.sdk_demo.world.worlds import small

WORLD = World(small())
LATE = WORLD.config.log.start_ms + 30 * 86_400_000


def test_pages_hold_distinct_items_that_are_online_and_new() -> None:
    policy = LoggingPolicy(WORLD.config.policy, WORLD.items, WORLD.users, seed=1)
    users = np.arange(len(WORLD.users))
    seen = np.random.default_rng(0).random((len(users), len(WORLD.items))) < 0.3
    now = WORLD.config.log.start_ms + users * 4_000_000
    pages = policy.pages(users, now, seen)
    assert pages.shape == (len(users), WORLD.config.policy.page_size)
    assert (np.diff(np.sort(pages, axis=1), axis=1) > 0).all()
    assert (WORLD.items.upload_ms[pages] <= now[:, None]).all()
    assert not np.take_along_axis(seen, pages, axis=1).any()


def test_pages_follow_long_term_taste_and_fall_off() -> None:
    users = np.arange(len(WORLD.users))
    seen = np.zeros((len(users), len(WORLD.items)), dtype=np.bool_)
    pages = LoggingPolicy(WORLD.config.policy, WORLD.items, WORLD.users, seed=1).pages(users, np.full(len(users), LATE), seen)
    match = np.einsum("ud,upd->up", WORLD.users.taste, WORLD.items.vector[pages].astype(float))
    quality = WORLD.items.quality[pages]
    assert match.mean() > 0.3
    assert quality.mean() > WORLD.items.quality.mean() + 0.3
    score = WORLD.config.policy.taste * match + WORLD.config.policy.quality * quality
    assert score[:, :10].mean() > score[:, 20:].mean()


def test_without_noise_the_order_is_exact_and_luck_is_the_seed_s() -> None:
    plain = msgspec.structs.replace(WORLD.config.policy, noise=0.0, explore=0.0)
    users = np.array([3, 9])
    seen = np.zeros((2, len(WORLD.items)), dtype=np.bool_)
    now = np.full(2, LATE)
    pages = LoggingPolicy(plain, WORLD.items, WORLD.users, seed=1).pages(users, now, seen)
    score = plain.taste * WORLD.users.taste[users] @ WORLD.items.vector.T.astype(float) + plain.quality * WORLD.items.quality
    assert np.array_equal(pages, np.argsort(-score, axis=1)[:, : plain.page_size])
    noisy = [
        LoggingPolicy(WORLD.config.policy, WORLD.items, WORLD.users, seed=seed).pages(users, now, seen) for seed in (1, 1, 2)
    ]
    assert np.array_equal(noisy[0], noisy[1])
    assert not np.array_equal(noisy[0], noisy[2])
