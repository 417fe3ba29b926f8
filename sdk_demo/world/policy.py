"""The simulated recommender that wrote the log: long-term taste and quality, seen through noise, and some exploration.

It knows nothing of the session, so its log leaves room for whoever does.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int64

from pocketrank.sdk_demo.world.catalogue import Items
from pocketrank.sdk_demo.world.parameters import PolicyConfig
from pocketrank.sdk_demo.world.users import Users

__all__ = ["LoggingPolicy"]

_CHUNK_SCORES = 4_000_000  # scores held at once; bounds memory for large catalogues


class LoggingPolicy:
    """Makes pages of candidates in cloud order."""

    def __init__(self, config: PolicyConfig, items: Items, users: Users, seed: int) -> None:
        self._config, self._items = config, items
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0x9A6E])))
        self._taste = (config.taste * users.taste).astype(np.float32)
        self._quality = (config.quality * items.quality).astype(np.float32)

    def pages(
        self, users: Int64[np.ndarray, " batch"], now_ms: Int64[np.ndarray, " batch"], seen: Bool[np.ndarray, "batch items"]
    ) -> Int64[np.ndarray, "batch page"]:
        """One page for each user (row numbers), best first, as item row numbers.

        Items not yet uploaded are never offered; items seen before only when nothing else is left.
        """
        size = max(1, _CHUNK_SCORES // len(self._items))
        parts = [self._pages(users[k : k + size], now_ms[k : k + size], seen[k : k + size]) for k in range(0, len(users), size)]
        return np.concatenate(parts)

    def _pages(
        self, users: Int64[np.ndarray, " batch"], now_ms: Int64[np.ndarray, " batch"], seen: Bool[np.ndarray, "batch items"]
    ) -> Int64[np.ndarray, "batch page"]:
        c, rng = self._config, self._rng
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

        # Exploration puts any online item into a slot; where that is already seen or on the page, the slot keeps its own.
        rows = np.arange(len(users))
        for slot in np.flatnonzero(rng.random(c.page_size) < c.explore):
            wild = rng.integers(0, online)
            fresh = ~seen[rows, wild] & ~(page == wild[:, None]).any(axis=1)
            page[:, slot] = np.where(fresh, wild, page[:, slot])
        return page.astype(np.int64)
