from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.sdk_demo.world import luck


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(1, 64))
def test_a_key_s_numbers_depend_on_nothing_else(values: list[int], count: int) -> None:
    keys = luck.absorb(luck.keys_from(7, batch=len(values)), np.array(values, dtype=np.int64))
    together = luck.uniforms(keys, count)
    for row, value in enumerate(values):
        alone = luck.uniforms(luck.absorb(luck.keys_from(7), np.array([value], dtype=np.int64)), count + 3)
        assert np.array_equal(together[row], alone[0, :count])
    assert together.min() > 0.0
    assert together.max() < 1.0


def test_known_numbers() -> None:
    """Pins the luck, so that a seed means the same world in every release."""
    u = luck.uniforms(luck.step_keys(luck.keys_from(1, 2, 3), 1, np.array([4]), np.array([5])), 3)
    assert u.tolist() == [[0.6785613666009258, 0.21015166834936688, 0.7194660181798547]]


def test_marginals_and_independence() -> None:
    rows = 20_000
    keys = luck.step_keys(luck.keys_from(5, batch=rows), 1, np.arange(rows))
    u = luck.uniforms(keys, 8)
    z = luck.normals(u)
    bound = 5.0 / np.sqrt(rows)
    assert np.abs(u.mean(axis=0) - 0.5).max() < bound * np.sqrt(1 / 12)
    assert np.abs(z.mean(axis=0)).max() < bound
    assert np.abs(z.var(axis=0) - 1.0).max() < bound * np.sqrt(2)
    assert np.abs(np.corrcoef(np.concatenate((u[1:], u[:-1]), axis=1).T) - np.eye(16)).max() < bound


def test_streams_steps_and_items_are_apart() -> None:
    key = luck.keys_from(9)
    keys = [
        int(luck.step_keys(key, stream, np.array([step]), np.array([item]))[0])
        for stream in range(luck.STREAMS)
        for step in range(30)
        for item in range(30)
    ]
    assert len(set(keys)) == len(keys)
