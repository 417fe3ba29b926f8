"""Embedding tables in the memory of this process, lost when it ends."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable

from pocketrank.cloud.stores.base import StoreWriteError
from pocketrank.cloud.stores.table import Layout, Table, TableConfig
from pocketrank.cloud.stores.tables import TableStore

__all__ = ["MemoryStore"]


class MemoryStore(TableStore):
    """Tables in anonymous memory. `clock` returns Unix time in seconds."""

    def __init__(self, config: TableConfig | None = None, clock: Callable[[], float] = time.time) -> None:
        super().__init__("memory:", config, clock)

    def _become_writer(self) -> None:
        """Always allowed: no other process has this memory."""

    def _names(self) -> list[str]:
        return list(self._tables)

    def _find(self, version: str) -> Table | None:
        return None

    def _make(self, version: str, layout: Layout, expires_s: float, old: Table | None) -> Table:
        try:
            memory = mmap.mmap(-1, layout.bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise StoreWriteError(self._where, f"{layout.bytes} bytes of memory", str(error)) from error
        memory.madvise(mmap.MADV_HUGEPAGE)  # as numpy does: rows far apart then miss the TLB less often
        table = Table(memory, self._where, self._config, layout)
        table.expires_s = expires_s
        if old is not None:
            table.copy(old)
        return table

    def _remove(self, version: str) -> None:
        """Nothing to do: the memory is freed with its last reader."""
