"""Feedback on impressions: the events that a device sends, and the receipt that the cloud returns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from pocketrank.device.contract.errors import ContractError
from pocketrank.device.contract.telemetry import NAME_PATTERN, TelemetryReport
from pocketrank.device.contract.wire import Versioned, Wire

__all__ = [
    "ACTIONS_MAX",
    "EVENT_ID_MAX",
    "EXPERIMENT_MAX",
    "WATCH_MS_MAX",
    "Ended",
    "FeedbackBatch",
    "FeedbackEvent",
    "FeedbackReceipt",
    "Network",
    "Orientation",
    "RefusedEvent",
    "check_event",
    "check_experiment",
    "is_action",
]

ACTIONS_MAX = 32
"""Largest number of custom actions in an event."""
EVENT_ID_MAX = 128
"""Maximum length of an event id in characters; a UUID has 36."""
EXPERIMENT_MAX = 128
"""Maximum length of an experiment's name in characters."""
WATCH_MS_MAX = 86_400_000
"""Longest watch of one item: a day."""
_YEAR_10000_MS = 253_402_300_800_000


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
    the columns of the impression log, and so are those of custom `actions`. A device sends None for a signal that its platform
    does not provide.
    """

    event_id: str
    """Chosen by the device and unique for ever among those of its user. An event is applied at most once."""
    user_id: int
    session_id: str
    item_id: int
    position: int
    """Place in the session, counted from 0."""
    impression_ms: int
    """When the item was first shown, in milliseconds since the Unix epoch, by the device's clock: from 1970 to the year 9999.
    The cloud corrects it where it cannot be right."""
    watch_ms: int
    """How long it was watched: 0 to `WATCH_MS_MAX`."""
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
    age_ms: int | UnsetType = UNSET
    """Time from when the item was first shown until the event is sent, by a clock that no setting changes. The cloud dates the
    event by it where the device's clock is wrong. Left out where it is not known."""
    actions: Annotated[tuple[str, ...], Meta(max_length=ACTIONS_MAX)] | UnsetType = UNSET
    """Names of the app's own actions that the user did, such as `purchase`, each once (`is_action`). Left out where there are
    none; what is left out is false, so that `event.actions or ()` are the names."""


class FeedbackBatch(Versioned, frozen=True, kw_only=True):
    """Events that are uploaded together, with what the device counted since its last report."""

    events: tuple[FeedbackEvent, ...]
    telemetry: TelemetryReport | None = None
    own_ids: bool | UnsetType = UNSET
    """Whether whole numbers in JSON are the team's own ids and not codes (`PageRequest.own_ids`)."""


class RefusedEvent(Wire, frozen=True, kw_only=True):
    """An event of a batch that the contract does not allow."""

    index: int
    """Its place in the batch, from 0."""
    reason: str


class FeedbackReceipt(Versioned, frozen=True, kw_only=True):
    """The cloud's answer to a batch, sent once the accepted events are durable."""

    accepted: int
    """Number of events that are new."""
    duplicates: int
    """Number of events whose `event_id` was already known."""
    refused: tuple[RefusedEvent, ...] = ()
    """Events that the contract does not allow, which no repetition changes. The others of the batch have their effect."""

    def settles(self, events: Sequence[FeedbackEvent]) -> bool:
        """Return whether this receipt speaks of each of `events` once, so that the device may forget them all."""
        refused = {event.index for event in self.refused}
        return (
            min(self.accepted, self.duplicates) >= 0
            and self.accepted + self.duplicates + len(self.refused) == len(events)
            and len(refused) == len(self.refused)
            and refused <= set(range(len(events)))
        )


def check_event(event: FeedbackEvent, path: str = "$") -> None:
    """Raise `ContractError` for values of an event that no cloud accepts. `path` is where the event stands."""
    if not 1 <= len(event.event_id) <= EVENT_ID_MAX:
        got = f"{len(event.event_id)} characters"
        raise ContractError(f"{path}.event_id", f"an id of 1 to {EVENT_ID_MAX} characters", got)
    check_experiment(event.experiment, f"{path}.experiment")
    if not 0 <= event.impression_ms < _YEAR_10000_MS:
        raise ContractError(f"{path}.impression_ms", "milliseconds from 1970 to the year 9999", str(event.impression_ms))
    if not 0 <= event.watch_ms <= WATCH_MS_MAX:
        raise ContractError(f"{path}.watch_ms", f"0 to {WATCH_MS_MAX} ms", str(event.watch_ms))
    if event.age_ms is not UNSET and not 0 <= event.age_ms < _YEAR_10000_MS:
        raise ContractError(f"{path}.age_ms", f"0 to {_YEAR_10000_MS - 1} ms", str(event.age_ms))
    if event.actions:
        _check_actions(event.actions, f"{path}.actions")


def check_experiment(name: str | None, path: str) -> None:
    """Raise `ContractError` for an experiment whose name is empty or longer than `EXPERIMENT_MAX`; None is no experiment."""
    if name is not None and not 1 <= len(name) <= EXPERIMENT_MAX:
        raise ContractError(path, f"a name of 1 to {EXPERIMENT_MAX} characters", f"{len(name)} characters")


_ACTION = re.compile(NAME_PATTERN)


def is_action(name: str) -> bool:
    """Return whether an app's own action may have this name: lower-case letters, digits and `_` after a letter, 48 at most, and
    not the name of a field of `FeedbackEvent`.
    """
    return _ACTION.match(name) is not None and name not in FeedbackEvent.__struct_fields__


def _check_actions(names: Sequence[str], path: str) -> None:
    if len(names) > ACTIONS_MAX:
        raise ContractError(path, f"at most {ACTIONS_MAX} actions", str(len(names)))
    for i, name in enumerate(names):
        if not is_action(name):
            raise ContractError(f"{path}[{i}]", "a name like `purchase` that is no field", f"`{name[:64]}`")
        if name in names[:i]:
            raise ContractError(f"{path}[{i}]", "each action once", f"`{name}` twice")
