"""The simulated recommender that wrote the log: noisy scores of long-term taste and quality, and some exploration.

It ignores the session, so that a model of the session can improve on its log.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int64

from pocketrank.sdk_demo.world.catalogue import Items
from pocketrank.sdk_demo.world.parameters import PolicyConfig
from pocketrank.sdk_demo.world.users import Users

__all__ = ["LoggingPolicy"]

_CHUNK_SCORES = 4_000_000  # scores computed at once, which bounds memory for large catalogues


class LoggingPolicy:
    """Recommender that makes pages of candidates in cloud order."""

    def __init__(self, config: PolicyConfig, items: Items, users: Users, seed: int) -> None:
        self._config, self._items = config, items
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0x9A6E])))
        self._taste = (config.taste * users.taste).astype(np.float32)
        self._quality = (config.quality * items.quality).astype(np.float32)

    def pages(
        self, users: Int64[np.ndarray, " batch"], now_ms: Int64[np.ndarray, " batch"], seen: Bool[np.ndarray, "batch items"]
    ) -> Int64[np.ndarray, "batch page"]:
        """Return one page for each user (row numbers), best first, as item row numbers.

        It holds no items that are not yet uploaded, and items that the user has seen only when no others are left.
        """
        size = max(1, _CHUNK_SCORES // len(self._items))
        parts = [self._pages(users[k : k + size], now_ms[k : k + size], seen[k : k + size]) for k in range(0, len(users), size)]
        return np.concatenate(parts)

    def _pages(
        self, users: Int64[np.ndarray, " batch"], now_ms: Int64[np.ndarray, " batch"], seen: Bool[np.ndarray, "batch items"]
    ) -> Int64[np.ndarray, "batch page"]:
        c, rng = self._config, self._rng
        # Noisy scores; seen items and items that are not yet online come last.
        scores: Float32[np.ndarray, "batch items"] = rng.standard_normal(seen.shape, dtype=np.float32)
        scores *= c.noise
        scores += self._taste[users] @ self._items.vector.T
        scores += self._quality
        online = np.searchsorted(self._items.upload_ms, now_ms, side="right")  # upload times are sorted
        scores -= 1e3 * seen
        for row, count in enumerate(online):
            scores[row, count:] = -1e9
        page = np.argpartition(-scores, c.page_size - 1, axis=1)[:, : c.page_size]
        order = np.argsort(-np.take_along_axis(scores, page, axis=1), axis=1, kind="stable")
        page = np.take_along_axis(page, order, axis=1)

        # Exploration puts any online item into a slot, unless it was seen or is on the page.
        rows = np.arange(len(users))
        for slot in np.flatnonzero(rng.random(c.page_size) < c.explore):
            wild = rng.integers(0, online)
            fresh = ~seen[rows, wild] & ~(page == wild[:, None]).any(axis=1)
            page[:, slot] = np.where(fresh, wild, page[:, slot])
        return page.astype(np.int64)
