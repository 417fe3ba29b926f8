"""Data that waits for the network or survives the end of the process: feedback, pages and small named states.

Modules of this folder queue, save and upload; a single call to the cloud is in `pocketrank.device.network`. The names below are
imported when they are first used, because a session without a store and an uploader needs neither SQLite nor the client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketrank.device.offline.database import DatabaseError
    from pocketrank.device.offline.outbox import MemoryOutbox, Outbox, OutboxConfig
    from pocketrank.device.offline.store import DeviceStore, DeviceStoreConfig
    from pocketrank.device.offline.upload import UploadConfig, Uploader

__all__ = [
    "DatabaseError",
    "DeviceStore",
    "DeviceStoreConfig",
    "MemoryOutbox",
    "Outbox",
    "OutboxConfig",
    "UploadConfig",
    "Uploader",
]

_MODULES = {
    "DatabaseError": "database",
    "DeviceStore": "store",
    "DeviceStoreConfig": "store",
    "MemoryOutbox": "outbox",
    "Outbox": "outbox",
    "OutboxConfig": "outbox",
    "UploadConfig": "upload",
    "Uploader": "upload",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module `{__name__}` has no `{name}`")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
