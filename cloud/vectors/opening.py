"""An index by configuration."""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from pocketrank.cloud.vectors.exact import ExactIndex
from pocketrank.cloud.vectors.index import IndexConfigError, VectorIndex
from pocketrank.cloud.vectors.ivf import IvfConfig, IvfIndex
from pocketrank.cloud.vectors.lists import ListsConfig
from pocketrank.cloud.vectors.qdrant_config import QdrantConfig

__all__ = ["IndexConfig", "open_index"]


class IndexConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which index, and what it must give."""

    kind: Literal["auto", "exact", "ivf", "qdrant"] = "auto"
    """`auto` is exact up to a size at which lists begin to pay, and lists above it; `ivf` has lists from the first rebuild on,
    whatever the size; both search exactly where lists miss `recall_min`."""
    url: str | None = None
    """Of Qdrant: `http://host:6333`, or a folder or `:memory:` to try it out."""
    api_key_env: str | None = None
    """Name of the environment variable with the key of Qdrant, so that the key is in no file."""
    collection: str = "pocketrank"
    """Qdrant's collection is `COLLECTION-NAME`, of the name that the index is opened by."""
    recall_min: float = ListsConfig().recall_min
    """Share of the exact best 100 that lists must find."""
    exact_below: int = IvfConfig().exact_below
    """The size for `auto`."""
    exact_share: float = IvfConfig().exact_share
    """Filter and exclusions that leave at most this share make the search exact."""
    rebuild_share: float = IvfConfig().rebuild_share
    """Lists are built anew once so many rows changed."""
    build_threads: int = ListsConfig().threads
    """Threads of a build of lists; a search has one."""
    timeout_s: float = QdrantConfig().timeout_s
    """Longest wait for Qdrant, but for a search with a deadline of its own."""
    replicas: int = QdrantConfig().replicas
    """Copies of each shard of a new collection of Qdrant."""
    shards: int | None = QdrantConfig().shards
    """Shards of a new collection of Qdrant; None: one for each node."""


def open_index(config: IndexConfig, *, name: str = "items") -> VectorIndex:
    """The index that `config` describes, empty, or with what Qdrant's collection holds.

    `name` has the version of the vectors in it (`items-3f2a91`), because those of two versions do not compare. Raises
    `IndexConfigError`, `IndexUnavailableError`.
    """
    try:
        lists = ListsConfig(recall_min=config.recall_min, threads=config.build_threads)
        ivf = IvfConfig(
            lists=lists,
            exact_below=1 if config.kind == "ivf" else config.exact_below,
            exact_share=config.exact_share,
            rebuild_share=config.rebuild_share,
        )
        qdrant = QdrantConfig(timeout_s=config.timeout_s, shards=config.shards, replicas=config.replicas)
    except ValueError as error:
        raise IndexConfigError("the configuration of an index", "what makes sense", str(error)) from error
    if config.kind == "exact":
        return ExactIndex()
    if config.kind != "qdrant":
        return IvfIndex(ivf)
    if not config.url:
        raise IndexConfigError("url", "the address of Qdrant", "none")
    from pocketrank.cloud.vectors.qdrant import QdrantIndex

    return QdrantIndex(config.url, f"{config.collection}-{name}", qdrant, api_key=_key(config))


def _key(config: IndexConfig) -> str | None:
    if config.api_key_env is None:
        return None
    if not (key := os.environ.get(config.api_key_env)):
        raise IndexConfigError("api_key_env", "the name of a variable that is set", f"`{config.api_key_env}`")
    return key
