"""Feedback on impressions: the events that a device sends, and the receipt that the cloud returns."""

from __future__ import annotations

from enum import IntEnum

from pocketrank.device.contract.telemetry import TelemetryReport
from pocketrank.device.contract.wire import Versioned

__all__ = ["Ended", "FeedbackBatch", "FeedbackEvent", "FeedbackReceipt", "Network", "Orientation"]


class Ended(IntEnum):
    """How an impression ended."""

    SWIPE = 0
    """The user swiped to the next item."""
    COMPLETE = 1
    """The item played to its end."""
    EXIT = 2
    """The user left the feed."""
    BACKGROUND = 3
    """The app went to the background."""


class Orientation(IntEnum):
    """How the phone was held."""

    PORTRAIT = 0
    LANDSCAPE = 1


class Network(IntEnum):
    """The network connection of the device."""

    OFFLINE = 0
    CELLULAR = 1
    WIFI = 2


class FeedbackEvent(Versioned, frozen=True, kw_only=True):
    """One finished impression: what was shown, how it was watched, what the user did, and what only the device observed.

    The names of the numeric fields are also the names of the model's feedback features (`FeatureSpec.feedback_floats`) and of
    the columns of the impression log. A device sends None for a signal that its platform does not provide.
    """

    event_id: str
    """Chosen by the device and unique for ever. An event is applied at most once."""
    user_id: int
    session_id: str
    item_id: int
    position: int
    """Place in the session, counted from 0."""
    impression_ms: int
    """When the item was first shown, in milliseconds since the Unix epoch, by the device's clock."""
    watch_ms: int
    """How long it was watched."""
    page_id: str | None = None
    """The page that the item came from."""
    experiment: str | None = None
    """The experiment of the request that the page answered."""
    ended: Ended = Ended.SWIPE
    click: bool = False
    like: bool = False
    follow: bool = False
    comment: bool = False
    share: bool = False
    profile_enter: bool = False
    dislike: bool = False
    volume: float | None = None
    """0 to 1."""
    volume_change: float | None = None
    """Change of `volume` during the impression."""
    muted: bool | None = None
    orientation: Orientation | None = None
    playback_rate: float | None = None
    """1.0 is normal speed."""
    pauses: int | None = None
    seeks: int | None = None
    scroll_speed: float | None = None
    """In screens per second."""
    network: Network | None = None
    buffering_ms: int | None = None
    """Time spent waiting for bytes."""
    battery_saver: bool | None = None
    backgrounded: bool | None = None


class FeedbackBatch(Versioned, frozen=True, kw_only=True):
    """Events that are uploaded together, with what the device counted since its last report."""

    events: tuple[FeedbackEvent, ...]
    telemetry: TelemetryReport | None = None


class FeedbackReceipt(Versioned, frozen=True, kw_only=True):
    """The cloud's answer to a batch, sent once the accepted events are durable."""

    accepted: int
    """Number of events that are new."""
    duplicates: int
    """Number of events whose `event_id` was already known."""
