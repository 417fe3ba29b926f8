"""Makes a `FeedbackEvent` of what a phone's listeners report while an item is shown.

What lasts beyond an item (sound, orientation, network, battery saver) belongs to one `DeviceState`, which listeners may set at
any time. What belongs to an item goes to its `Impression`. A value that nobody reported is None in the event: `None` is a
missing value, while 0 would be a made-up one.

All time of an impression goes to the first of these that is true: the app is in the background; the user paused; the player
waits for bytes (`buffering_ms`); else it is watched (`watch_ms`, on the user's clock, whatever the playback rate). It is
measured by a `SteadyClock`, so that a phone's clock may be set meanwhile. The event carries its age by that clock
(`FeedbackEvent.age_ms`), by which the cloud corrects its date.

A listener may be called late, twice or out of order, so only a wrong name raises (ValueError). For everything else:

- a volume is cut to 0..1, a scroll speed has no direction, and a playback rate is above 0 (a player's 0 is a pause: call
  `paused`). A number that is not finite, and a rate of 0 or below, is ignored;
- `paused` while paused or in the background is ignored, and so are `resumed`, `buffered` and `foregrounded` without their
  opposite;
- calls after `finish` are ignored, and `finish` again returns the same event.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from secrets import token_hex
from typing import Any, Literal, get_args

from msgspec import UNSET

from pocketrank.device.clock import DeviceClock, SteadyClock, wall_clock
from pocketrank.device.contract import (
    ACTIONS_MAX,
    WATCH_MS_MAX,
    Ended,
    FeedbackEvent,
    Network,
    Orientation,
    as_code,
    is_action,
)

__all__ = ["Action", "Counted", "DeviceState", "Impression"]

Action = Literal["click", "like", "follow", "comment", "share", "profile_enter", "dislike"]
"""An action of the user on an item, by the event's field names."""

Counted = Literal["pauses", "seeks", "buffering_ms", "backgrounded"]
"""A field that counts from 0 on a platform that has listeners for it."""

_ACTIONS: frozenset[str] = frozenset(get_args(Action))
_COUNTED: frozenset[str] = frozenset(get_args(Counted))


_start = token_hex(8)
_count = count()


def _begin() -> None:
    global _start
    _start = token_hex(8)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin)


def _new_id() -> str:
    # Ids of one start begin alike, so that those of a batch are neighbours in the cloud's index.
    return f"{_start}/{next(_count):x}"


def _number(value: float | None, minimum: float = -math.inf, maximum: float = math.inf) -> float | None:
    """Return `value` cut to its limits; None when it is not a finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return min(max(float(value), minimum), maximum)


@dataclass(slots=True)
class DeviceState:
    """State of the phone that lasts from one impression to the next. None is a value that nobody reported.

    Listeners set the fields at any time. An event has them as they were when its impression ended.
    """

    volume: float | None = None
    """0..1"""
    muted: bool | None = None
    orientation: Orientation | None = None
    network: Network | None = None
    battery_saver: bool | None = None
    counted: frozenset[Counted] = frozenset()
    """Fields that this platform has listeners for: they are 0 in an event in which nothing happened. A field that is not named
    here is None until a listener is called."""

    def __post_init__(self) -> None:
        if unknown := self.counted - _COUNTED:
            raise ValueError(f"expected names among {', '.join(sorted(_COUNTED))}, got {', '.join(sorted(unknown))}")


class Impression:
    """One item from when it appears on the screen until it leaves. Not for use from several threads at once."""

    def __init__(
        self,
        item_id: int | str,
        *,
        position: int,
        user_id: int | str,
        session_id: str,
        device: DeviceState | None = None,
        page_id: str | None = None,
        experiment: str | None = None,
        event_id: str | None = None,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        """Begin now, by `clock` (ms since the epoch, UTC). `position` is that of the item in its session, from 0. Ids may be a
        team's own texts. The event has no age by a clock that is no `DeviceClock`, because nothing is known of its steps.

        The event's id is unique whatever the app passes: a random part of this start of the app, and a count. Give an
        `event_id` where a session is to be replayed bit for bit.
        """
        self.item_id = as_code(item_id, "$.item_id")
        """Code of the item that is shown."""
        self._device = device or DeviceState()
        self._clock, self._is_steady = SteadyClock(clock), isinstance(clock, DeviceClock)
        self._began_ms = self._last_ms = self._clock()
        self._volume = _number(self._device.volume, 0, 1)  # at the beginning
        self._background = self._paused = self._buffering = False
        self._watch_ms = 0
        self._event: FeedbackEvent | None = None
        self._actions: dict[str, None] = {}
        self._reported: dict[str, Any] = {name: False if name == "backgrounded" else 0 for name in self._device.counted}
        self._base: dict[str, Any] = {
            "event_id": _new_id() if event_id is None else event_id,
            "user_id": as_code(user_id, "$.user_id"),
            "session_id": session_id,
            "item_id": self.item_id,
            "position": position,
            "impression_ms": self._began_ms,
            "page_id": page_id,
            "experiment": experiment,
        }

    def __repr__(self) -> str:
        state = "on screen" if self._event is None else "finished"
        return f"<Impression of item {self.item_id}, event {self._base['event_id']}, {state}>"

    def did(self, action: Action, done: bool = True) -> None:
        """Report that the user did `action`, or took it back. Raises ValueError for another action."""
        if action not in _ACTIONS:
            raise ValueError(f"expected one of {', '.join(sorted(_ACTIONS))}, got {action!r}")
        self._reported[action] = done

    def action(self, name: str, done: bool = True) -> None:
        """Report that the user did an action of the app's own, such as `purchase`, or took it back.

        Raises ValueError for a name that no such action may have (`is_action`), and for more than `ACTIONS_MAX` of them.
        """
        if not is_action(name):
            raise ValueError(f"expected a name like `purchase` that is no field of an event, got {name!r}")
        if not done:
            self._actions.pop(name, None)
        elif len(self._actions | {name: None}) > ACTIONS_MAX:
            raise ValueError(f"expected at most {ACTIONS_MAX} actions on an item, got one more: {name!r}")
        else:
            self._actions[name] = None

    def paused(self) -> None:
        """Report that the user paused. What the player does by itself in the background is not a pause."""
        self._elapse()
        if not self._paused and not self._background:
            self._count("pauses")
            self._paused = True

    def resumed(self) -> None:
        """Report that the user ended the pause."""
        self._elapse()
        self._paused = False

    def buffering(self) -> None:
        """Report that the player waits for bytes."""
        self._elapse()
        self._count("buffering_ms", 0)
        self._buffering = True

    def buffered(self) -> None:
        """Report that the player has bytes again."""
        self._elapse()
        self._buffering = False

    def backgrounded(self) -> None:
        """Report that the app left the screen."""
        self._elapse()
        self._reported["backgrounded"] = self._background = True

    def foregrounded(self) -> None:
        """Report that the app is on the screen again."""
        self._elapse()
        self._background = False

    def seeked(self) -> None:
        """Report that the user jumped within the item."""
        self._count("seeks")

    def playback_rate(self, rate: float) -> None:
        """Report how fast the item plays, where 1 is normal. The event has the last rate."""
        if (known := _number(rate)) is not None and known > 0:
            self._reported["playback_rate"] = known

    def scrolled(self, screens_per_s: float) -> None:
        """Report how fast the finger moved, in screens per second. The event has the last speed, that of the final swipe."""
        if (known := _number(screens_per_s)) is not None:
            self._reported["scroll_speed"] = abs(known)

    def finish(self, ended: Ended = Ended.SWIPE) -> FeedbackEvent:
        """Return the event, for `FeedSession.feedback`. `volume_change` is the last volume minus that at the beginning."""
        if self._event is None:
            self._elapse()
            reported, device = self._reported, self._device
            volume = _number(device.volume, 0, 1)
            self._event = FeedbackEvent(
                **self._base,
                **reported,
                watch_ms=self._watch_ms,
                ended=ended,
                volume=volume,
                volume_change=None if volume is None or self._volume is None else volume - self._volume,
                muted=device.muted,
                orientation=device.orientation,
                network=device.network,
                battery_saver=device.battery_saver,
                age_ms=self._last_ms - self._began_ms if self._is_steady else UNSET,
                actions=tuple(self._actions) or UNSET,
            )
        return self._event

    def _count(self, name: Counted, by: int = 1) -> None:
        self._reported[name] = self._reported.get(name, 0) + by

    def _elapse(self) -> None:
        """Add the time since the last report to what was true during it."""
        now_ms = self._clock()
        spent, self._last_ms = now_ms - self._last_ms, now_ms
        if self._background or self._paused:
            return
        if self._buffering:
            self._count("buffering_ms", spent)
        else:
            self._watch_ms = min(self._watch_ms + spent, WATCH_MS_MAX)
