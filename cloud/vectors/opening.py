"""Opens the vector index that a configuration describes."""

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
    """Kind of an index, its recall and its limits: the table `[index.NAME]` of the pipeline file."""

    kind: Literal["auto", "exact", "ivf", "qdrant"] = "auto"
    """`auto` searches exactly below the size `exact_below`, and in lists above it. `ivf` has lists from the first build on,
    whatever the size. Both search exactly where lists miss `recall_min`."""
    url: str | None = None
    """Address of Qdrant: `http://host:6333`, or a folder or `:memory:` to try it out."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key of Qdrant, so that the key is in no file."""
    collection: str = "pocketrank"
    """First part of the name of Qdrant's collection, `COLLECTION-NAME`; `NAME` is what the index is opened with."""
    recall_min: float = ListsConfig().recall_min
    """Share of the exact best 100 that lists must find."""
    exact_below: int = IvfConfig().exact_below
    """Number of items from which `auto` uses lists."""
    exact_share: float = IvfConfig().exact_share
    """A search is exact when its filter and exclusions leave at most this share of the items."""
    rebuild_share: float = IvfConfig().rebuild_share
    """Lists are rebuilt once this share of the rows changed."""
    build_threads: int = ListsConfig().threads
    """Threads for building lists; a search has one."""
    timeout_s: float = QdrantConfig().timeout_s
    """Maximum wait in seconds for Qdrant, except for a search with a deadline of its own."""
    replicas: int = QdrantConfig().replicas
    """Copies of each shard in a new collection of Qdrant."""
    shards: int | None = QdrantConfig().shards
    """Shards in a new collection of Qdrant; None: one for each node."""


def open_index(config: IndexConfig, *, name: str = "items") -> VectorIndex:
    """Open the index that `config` describes: empty, or with the rows of Qdrant's collection.

    `name` must hold the version of the vectors (`items-3f2a91`), because those of two versions cannot be compared. Raises
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
        raise IndexConfigError("the configuration of an index", "valid values", str(error)) from error
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
