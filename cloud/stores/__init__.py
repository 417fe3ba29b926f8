"""Embedding stores: tables of fp16 rows by id, one for each split version.

The folder holds the interface, its backends, and what fills them. Every backend passes `tests/cloud/stores/conformance.py`. A
store is opened by its URL, for example `open_store("mmap:tables")`.
"""

from pocketrank.cloud.stores.base import (
    EmbeddingStore,
    StoreConfigError,
    StoredRows,
    StoreError,
    StoreInputError,
    StoreUnavailableError,
    StoreWriteError,
    TableInfo,
    UnknownVersionError,
)
from pocketrank.cloud.stores.opening import open_store

__all__ = [
    "EmbeddingStore",
    "StoreConfigError",
    "StoreError",
    "StoreInputError",
    "StoreUnavailableError",
    "StoreWriteError",
    "StoredRows",
    "TableInfo",
    "UnknownVersionError",
    "open_store",
]
