"""Puts the vectors of a published run where servers look for them."""

from __future__ import annotations

import logging

import numpy as np

from pocketrank.cloud.published.published import Published, PublishedRecord
from pocketrank.cloud.stores.base import EmbeddingStore

__all__ = ["fill_store"]

_CHUNK = 50_000

_logger = logging.getLogger(__name__)


def fill_store(store: EmbeddingStore, published: Published, record: PublishedRecord, ttl_s: float | None = None) -> int:
    """Put the item vectors of a run into `store` unless it has them; how many were put.

    Row 0, the vector of an unknown item, goes in under its id, the smallest int64. A table that another filled half-way is
    filled again; rows that are there are taken to be as new or newer and stay. With `ttl_s` the version's life starts anew.
    Raises `StoreError`.
    """
    version, ids, vectors = record.split_version, np.asarray(published.item_id), np.asarray(published.item_vector)
    table = store.versions().get(version)
    whole = table is not None and table.rows >= len(ids)
    if whole and ttl_s is None:
        return 0
    store.create(version, vectors.shape[1], ttl_s=ttl_s)
    put = 0
    for start in range(0, 0 if whole else len(ids), _CHUNK):
        part = slice(start, start + _CHUNK)
        missing = ~store.get(version, ids[part]).found
        if missing.any():
            store.put(version, ids[part][missing], vectors[part][missing])
            put += int(missing.sum())
    if put:
        _logger.info("put %d vectors of %s into the store", put, version)
    return put
