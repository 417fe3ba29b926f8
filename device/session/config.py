"""Options of a session."""

from __future__ import annotations

from dataclasses import dataclass, field

from pocketrank.device.feedback.privacy import PrivacyPolicy
from pocketrank.device.offline.outbox import OutboxConfig
from pocketrank.device.ranking.tiers import Tier
from pocketrank.device.ranking.watchdog import WatchdogConfig
from pocketrank.device.reports.telemetry import TelemetryConfig

__all__ = ["RefillConfig", "SessionConfig"]


@dataclass(frozen=True)
class RefillConfig:
    """Backoff (`pocketrank.device.backoff`) after page requests that failed."""

    backoff_ms: int = 1_000
    """First span."""
    backoff_max_ms: int = 60_000
    """Longest span."""


@dataclass(frozen=True)
class SessionConfig:
    """What a `FeedSession` remembers, sends and waits for."""

    shown_max: int = 256
    """Number of last shown items that are remembered. The cloud is asked to leave them out, a page's repeats of them are
    dropped, and feedback finds their features. They keep the pages they came from in memory, some 40 kB each."""
    request_events_max: int = 1000
    """Maximum number of events in a page request; the rest waits for the next call. A server takes some 4,000."""
    outbox: OutboxConfig = field(default_factory=OutboxConfig)
    """Limits of the feedback queue in memory. A session with a store uses the store's queue instead."""
    refill: RefillConfig = field(default_factory=RefillConfig)
    """Backoff while the cloud does not answer."""
    watchdog: WatchdogConfig | None = None
    """Bound on how long a swipe waits for the models. None: a swipe waits until they answer."""
    telemetry: TelemetryConfig | None = None
    """Which sessions report what they count and time. None: this one does not."""
    privacy: PrivacyPolicy | None = None
    """What may leave the device. None: what training the models in use needs (`PrivacyPolicy.for_spec`)."""
    tier: Tier | None = None
    """The tier that the ranker was opened with (`choose_tier`). None: the bundle's own search at every swipe."""
    experiment: str | None = None
    """Name of the experiment that requests and feedback belong to (`PageRequest.experiment`)."""
    own_ids: bool = False
    """Whether pages carry the team's own ids of their items, for `FeedSession.own_id`. They cost the length of the ids."""
    expects_model: bool = True
    """Whether pages without a model are a fallback, which is counted (`Counters.no_model`) and logged. False for a feed that
    keeps cloud order on purpose, such as the control arm of an experiment."""
