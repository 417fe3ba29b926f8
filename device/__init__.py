"""The SDK that runs in the user's hand: takes pages, learns from each swipe, reorders what is left, asks for more.

The names below are all that an app needs; each is imported when it is first used, so that `import device` stays light.

>>> bundle = CloudClient("http://localhost:8080").download_bundle(Path("bundle"))       # doctest: +SKIP
>>> session = FeedSession(Ranker.open(bundle), user_id=7, session_id="s1")              # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device.bundle import Bundle, BundleError
    from device.client import ClientError, CloudClient
    from device.contract import ContractError, Ended, FeedbackEvent, Network, Orientation, Page, PageRequest
    from device.counters import Counters
    from device.paging import FixedPaging, PageDecision, Paging, PagingState
    from device.personal import PersonalLayer
    from device.ranker import Ranker
    from device.runtimes.base import ModelRuntimeError
    from device.session import FeedSession, SessionConfig

__all__ = [
    "Bundle",
    "BundleError",
    "ClientError",
    "CloudClient",
    "ContractError",
    "Counters",
    "Ended",
    "FeedSession",
    "FeedbackEvent",
    "FixedPaging",
    "ModelRuntimeError",
    "Network",
    "Orientation",
    "Page",
    "PageDecision",
    "PageRequest",
    "Paging",
    "PagingState",
    "PersonalLayer",
    "Ranker",
    "SessionConfig",
]

_FROM = {
    "bundle": ("Bundle", "BundleError"),
    "client": ("ClientError", "CloudClient"),
    "contract": ("ContractError", "Ended", "FeedbackEvent", "Network", "Orientation", "Page", "PageRequest"),
    "counters": ("Counters",),
    "paging": ("FixedPaging", "PageDecision", "Paging", "PagingState"),
    "personal": ("PersonalLayer",),
    "ranker": ("Ranker",),
    "runtimes.base": ("ModelRuntimeError",),
    "session": ("FeedSession", "SessionConfig"),
}
_HOME = {name: module for module, names in _FROM.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module `device` has no `{name}`")
    return getattr(importlib.import_module(f"device.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
