"""The SDK that runs on the user's device: takes pages, learns from each swipe, reorders what is left, asks for more.

An app needs no other names than those below. Each is imported when it is first used, so that `import pocketrank.device` stays
light.

>>> bundle = CloudClient("http://localhost:8080").download_bundle(Path("bundle"))       # doctest: +SKIP
>>> session = FeedSession(Ranker.open(bundle), user_id=7, session_id="s1")              # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketrank.device.aio import AsyncCloudClient, AsyncFeedSession
    from pocketrank.device.bundle.bundle import Bundle
    from pocketrank.device.bundle.files import BundleError
    from pocketrank.device.bundle.signing import TrustedKeys
    from pocketrank.device.contract import ContractError, Ended, FeedbackEvent, Network, Orientation, Page, PageRequest
    from pocketrank.device.feedback.impression import DeviceState, Impression
    from pocketrank.device.feedback.privacy import PrivacyPolicy
    from pocketrank.device.model.personal import PersonalLayer
    from pocketrank.device.network.client import CloudClient
    from pocketrank.device.network.errors import ClientError
    from pocketrank.device.offline.store import DeviceStore
    from pocketrank.device.offline.upload import Uploader
    from pocketrank.device.paging import FixedPaging, PageDecision, Paging, PagingState, ThresholdPaging, UpliftPaging
    from pocketrank.device.ranking.ranker import Ranker
    from pocketrank.device.ranking.tiers import Tier
    from pocketrank.device.ranking.watchdog import WatchdogConfig
    from pocketrank.device.reports.telemetry import TelemetryConfig
    from pocketrank.device.reports.trace import Tracer
    from pocketrank.device.runtimes.base import ModelRuntimeError
    from pocketrank.device.session import Counters, FeedSession, Refill, SessionConfig
    from pocketrank.device.strategies import Arranger
    from pocketrank.device.updates import BundleStore, Updates

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
    "bundle.bundle": ("Bundle",),
    "bundle.files": ("BundleError",),
    "bundle.signing": ("TrustedKeys",),
    "contract": ("ContractError", "Ended", "FeedbackEvent", "Network", "Orientation", "Page", "PageRequest"),
    "feedback.impression": ("DeviceState", "Impression"),
    "feedback.privacy": ("PrivacyPolicy",),
    "model.personal": ("PersonalLayer",),
    "network.client": ("CloudClient",),
    "network.errors": ("ClientError",),
    "offline.store": ("DeviceStore",),
    "offline.upload": ("Uploader",),
    "paging": ("FixedPaging", "PageDecision", "Paging", "PagingState", "ThresholdPaging", "UpliftPaging"),
    "ranking.ranker": ("Ranker",),
    "ranking.tiers": ("Tier",),
    "ranking.watchdog": ("WatchdogConfig",),
    "reports.telemetry": ("TelemetryConfig",),
    "reports.trace": ("Tracer",),
    "runtimes.base": ("ModelRuntimeError",),
    "session": ("Counters", "FeedSession", "Refill", "SessionConfig"),
    "strategies": ("Arranger",),
    "updates": ("BundleStore", "Updates"),
}
_HOME = {name: module for module, names in _FROM.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module `pocketrank.device` has no `{name}`")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
