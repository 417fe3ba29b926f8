"""Vectors in clusters, with attributes, for the tests of indexes."""

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.vectors.index import AGE_UNKNOWN, Attributes

WIDTH, CATEGORIES, AUTHORS = 16, 20, 50
_CENTRES = np.random.default_rng(0).normal(size=(60, WIDTH))


def vectors(n: int, seed: int) -> NDArray[np.float32]:
    """[n, WIDTH] that fp16 holds exactly, so that every index scores the same."""
    rng = np.random.default_rng(seed)
    made = _CENTRES[rng.integers(0, len(_CENTRES), n)] + 0.5 * rng.normal(size=(n, WIDTH))
    return made.astype(np.float16).astype(np.float32)


def attributes(n: int, seed: int) -> Attributes:
    """One in twenty of each is unknown; categories and authors are uneven."""
    rng = np.random.default_rng(seed)
    category = (rng.random(n) ** 2 * CATEGORIES).astype(np.int32)
    author = (rng.random(n) ** 2 * AUTHORS).astype(np.int64) * 10**15
    created = np.where(rng.random(n) < 0.05, AGE_UNKNOWN, 1_700_000_000_000 + rng.integers(0, 1000, n))
    return Attributes(author, category, created)
