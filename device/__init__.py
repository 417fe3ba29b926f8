"""The SDK that runs in the user's hand: takes pages, learns from each swipe, reorders what is left, asks for more.

The names below are all that an app needs; each is imported when it is first used, so that `import device` stays light.

>>> bundle = CloudClient("http://localhost:8080").download_bundle(Path("bundle"))       # doctest: +SKIP
>>> session = FeedSession(Ranker.open(bundle), user_id=7, session_id="s1")              # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device.aio import AsyncCloudClient, AsyncFeedSession
    from device.bundle import Bundle, BundleError
    from device.contract import ContractError, Ended, FeedbackEvent, Network, Orientation, Page, PageRequest
    from device.counters import Counters
    from device.impression import DeviceState, Impression
    from device.network.client import ClientError, CloudClient
    from device.offline.store import DeviceStore
    from device.offline.upload import Uploader
    from device.paging import FixedPaging, PageDecision, Paging, PagingState, ThresholdPaging, UpliftPaging
    from device.personal import PersonalLayer
    from device.privacy import PrivacyPolicy
    from device.ranker import Ranker
    from device.refill import Refill
    from device.runtimes.base import ModelRuntimeError
    from device.session import FeedSession, SessionConfig
    from device.signing import TrustedKeys
    from device.strategies import Arranger
    from device.telemetry import TelemetryConfig
    from device.tiers import Tier
    from device.trace import Tracer
    from device.updates import BundleStore, Updates
    from device.watchdog import WatchdogConfig

__version__ = "0.1.0"

__all__ = [
    "Arranger",
    "AsyncCloudClient",
    "AsyncFeedSession",
    "Bundle",
    "BundleError",
    "BundleStore",
    "ClientError",
    "CloudClient",
    "ContractError",
    "Counters",
    "DeviceState",
    "DeviceStore",
    "Ended",
    "FeedSession",
    "FeedbackEvent",
    "FixedPaging",
    "Impression",
    "ModelRuntimeError",
    "Network",
    "Orientation",
    "Page",
    "PageDecision",
    "PageRequest",
    "Paging",
    "PagingState",
    "PersonalLayer",
    "PrivacyPolicy",
    "Ranker",
    "Refill",
    "SessionConfig",
    "TelemetryConfig",
    "ThresholdPaging",
    "Tier",
    "Tracer",
    "TrustedKeys",
    "Updates",
    "UpliftPaging",
    "Uploader",
    "WatchdogConfig",
]

_FROM = {
    "aio": ("AsyncCloudClient", "AsyncFeedSession"),
    "bundle": ("Bundle", "BundleError"),
    "network.client": ("ClientError", "CloudClient"),
    "contract": ("ContractError", "Ended", "FeedbackEvent", "Network", "Orientation", "Page", "PageRequest"),
    "counters": ("Counters",),
    "impression": ("DeviceState", "Impression"),
    "paging": ("FixedPaging", "PageDecision", "Paging", "PagingState", "ThresholdPaging", "UpliftPaging"),
    "personal": ("PersonalLayer",),
    "privacy": ("PrivacyPolicy",),
    "ranker": ("Ranker",),
    "refill": ("Refill",),
    "runtimes.base": ("ModelRuntimeError",),
    "session": ("FeedSession", "SessionConfig"),
    "signing": ("TrustedKeys",),
    "offline.store": ("DeviceStore",),
    "strategies": ("Arranger",),
    "telemetry": ("TelemetryConfig",),
    "tiers": ("Tier",),
    "trace": ("Tracer",),
    "updates": ("BundleStore", "Updates"),
    "offline.upload": ("Uploader",),
    "watchdog": ("WatchdogConfig",),
}
_HOME = {name: module for module, names in _FROM.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module `device` has no `{name}`")
    return getattr(importlib.import_module(f"device.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
