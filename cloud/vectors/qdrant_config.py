"""How Qdrant is reached. Apart from the index itself, whose client takes seconds to import."""

from __future__ import annotations

import msgspec

__all__ = ["QdrantConfig"]


class QdrantConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A connection, and how a collection is made when there is none."""

    timeout_s: float = 5.0
    """Longest wait for anything but a search with a deadline of its own; rounded up to whole seconds."""
    batch_rows: int = 1000
    """Rows of one upsert or deletion on the wire."""
    shards: int | None = None
    """Shards of a new collection; None: one for each node."""
    replicas: int = 1
    """Copies of each shard of a new collection."""
    hnsw_ef: int | None = None
    """How far a search looks; None: as the collection says."""

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or min(self.batch_rows, self.shards or 1, self.replicas, self.hnsw_ef or 1) < 1:
            raise ValueError("Expected timeout_s > 0 and batch_rows, shards, replicas and hnsw_ef >= 1")
