"""The connection to Qdrant. Apart from the index itself, because Qdrant's client takes seconds to import."""

from __future__ import annotations

import msgspec

__all__ = ["QdrantConfig"]


class QdrantConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Connection to Qdrant, and the shape of a new collection."""

    timeout_s: float = 5.0
    """Maximum wait, except for a search with a deadline of its own; rounded up to whole seconds."""
    retry_s: float = 2.0
    """How long searches fail at once after one that got no answer; then the next one tries. So a server that accepts and says
    nothing costs one page its deadline, and not every page."""
    batch_rows: int = 1000
    """Number of rows in one request to upsert or delete."""
    shards: int | None = None
    """Shards in a new collection; None: one for each node."""
    replicas: int = 1
    """Copies of each shard in a new collection."""

    def __post_init__(self) -> None:
        if min(self.timeout_s, self.retry_s) <= 0 or min(self.batch_rows, self.shards or 1, self.replicas) < 1:
            raise ValueError("Expected timeout_s and retry_s > 0, and batch_rows, shards and replicas >= 1")
