"""What a device tells of an impression."""

from __future__ import annotations

from enum import IntEnum

from pocketrank.device.contract.telemetry import TelemetryReport
from pocketrank.device.contract.wire import Versioned

__all__ = ["Ended", "FeedbackBatch", "FeedbackEvent", "FeedbackReceipt", "Network", "Orientation"]


class Ended(IntEnum):
    """How an impression ended."""

    SWIPE = 0
    COMPLETE = 1
    EXIT = 2
    BACKGROUND = 3


class Orientation(IntEnum):
    """How the phone was held."""

    PORTRAIT = 0
    LANDSCAPE = 1


class Network(IntEnum):
    """What carried the bytes."""

    OFFLINE = 0
    CELLULAR = 1
    WIFI = 2


class FeedbackEvent(Versioned, frozen=True, kw_only=True):
    """One finished impression: what was shown, how it was watched, what the user did, what only the device saw.

    The names of the numeric fields are the names of the model's feedback features (`FeatureSpec.feedback_floats`) and of the
    columns of the impression log. A device-only field that the platform cannot tell is None. `experiment` is that of the
    page request.
    """

    event_id: str
    user_id: int
    session_id: str
    item_id: int
    position: int
    impression_ms: int
    watch_ms: int
    page_id: str | None = None
    experiment: str | None = None
    ended: Ended = Ended.SWIPE
    click: bool = False
    like: bool = False
    follow: bool = False
    comment: bool = False
    share: bool = False
    profile_enter: bool = False
    dislike: bool = False
    volume: float | None = None
    volume_change: float | None = None
    muted: bool | None = None
    orientation: Orientation | None = None
    playback_rate: float | None = None
    pauses: int | None = None
    seeks: int | None = None
    scroll_speed: float | None = None
    network: Network | None = None
    buffering_ms: int | None = None
    battery_saver: bool | None = None
    backgrounded: bool | None = None


class FeedbackBatch(Versioned, frozen=True, kw_only=True):
    """Events uploaded together, and what the device tells of itself since the last time."""

    events: tuple[FeedbackEvent, ...]
    telemetry: TelemetryReport | None = None


class FeedbackReceipt(Versioned, frozen=True, kw_only=True):
    """The cloud's answer to a batch: `accepted` are new and durable, `duplicates` were known by event id."""

    accepted: int
    duplicates: int
