"""Filling of a store with the item vectors of a published run."""

from __future__ import annotations

import logging

import numpy as np

from pocketrank.cloud.published.published import Published, PublishedRecord
from pocketrank.cloud.stores.base import EmbeddingStore

__all__ = ["fill_store"]

_CHUNK = 50_000

_logger = logging.getLogger(__name__)


def fill_store(store: EmbeddingStore, published: Published, record: PublishedRecord, ttl_s: float | None = None) -> int:
    """Write the item vectors of a run into `store`, without those that it has. Returns the number of rows written.

    Row 0, the vector of an unknown item, has the smallest int64 as its id. A table that another process left incomplete is
    completed; rows that it has are at least as new, and stay. With `ttl_s` the version expires in so many seconds. Raises
    `StoreError`.
    """
    version, ids, vectors = record.split_version, np.asarray(published.item_id), np.asarray(published.item_vector)
    table = store.versions().get(version)
    complete = table is not None and table.rows >= len(ids)
    if complete and ttl_s is None:
        return 0
    store.create(version, vectors.shape[1], ttl_s=ttl_s)
    written = 0
    for start in range(0, 0 if complete else len(ids), _CHUNK):
        part = slice(start, start + _CHUNK)
        missing = ~store.get(version, ids[part]).found
        if missing.any():
            store.put(version, ids[part][missing], vectors[part][missing])
            written += int(missing.sum())
    if written:
        _logger.info("wrote %d vectors of %s to the store", written, version)
    return written
