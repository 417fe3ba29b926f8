"""Fills a `FeedbackEvent` from what a phone's listeners say while an item is shown.

What holds between items (sound, orientation, network, battery saver) is told to one `DeviceState`, at any time; what belongs
to an item, to its `Impression`. What nobody told is None in the event: `None` is a missing value, 0 would be a made-up one.

All time of an impression goes to the first of these that is true: the app is in the background; the user paused; the player
waits for bytes (`buffering_ms`); else it is watched (`watch_ms`, on the user's clock, whatever the playback rate). A clock that
goes back adds nothing for that step.

A listener may be called late, twice or out of order, so that only a wrong name raises (ValueError). The rest is stated here:

- a volume ends at 0 and 1, a scroll speed is without direction, and a playback rate is above 0 (a player's 0 is a pause: tell
  `paused`); what is no finite number, or such a rate, was not told;
- `paused` while paused or in the background, and `resumed`, `buffered` or `foregrounded` without their opposite, are nothing;
- what comes after `finish` changes nothing, and `finish` again gives the same event.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pocketrank.device.clock import wall_clock
from pocketrank.device.contract import Ended, FeedbackEvent, Network, Orientation

__all__ = ["Action", "Counted", "DeviceState", "Impression"]

Action = Literal["click", "like", "follow", "comment", "share", "profile_enter", "dislike"]
"""What a user does with an item, by the event's names."""

Counted = Literal["pauses", "seeks", "buffering_ms", "backgrounded"]
"""What is counted from 0 where a platform has listeners for it."""

_ACTIONS: frozenset[str] = frozenset(get_args(Action))
_COUNTED: frozenset[str] = frozenset(get_args(Counted))


def _number(value: float | None, least: float = -math.inf, most: float = math.inf) -> float | None:
    """`value` between its ends; None where it is no finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return min(max(float(value), least), most)


@dataclass(slots=True)
class DeviceState:
    """What holds from one impression to the next. Listeners set the fields whenever they like; None is what nobody told.

    An event has them as they were at its end.
    """

    volume: float | None = None
    """0..1"""
    muted: bool | None = None
    orientation: Orientation | None = None
    network: Network | None = None
    battery_saver: bool | None = None
    counted: frozenset[Counted] = frozenset()
    """What this platform has listeners for: an event in which it never happened says 0. Without, it says None, and the first
    call of a listener is what tells."""

    def __post_init__(self) -> None:
        if unknown := self.counted - _COUNTED:
            raise ValueError(f"expected names among {', '.join(sorted(_COUNTED))}, got {', '.join(sorted(unknown))}")


class Impression:
    """One item from when it is shown until it is gone. Not for use from several threads at once."""

    def __init__(
        self,
        item_id: int,
        *,
        position: int,
        user_id: int,
        session_id: str,
        device: DeviceState | None = None,
        page_id: str | None = None,
        experiment: str | None = None,
        event_id: str | None = None,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        """Begins now, by `clock` (ms since the epoch, UTC). `position` is that of the item in its session, from 0.

        The event's id is `session_id/position`, so that a session replays bit for bit; give an `event_id` (from a random source
        of yours) where a session's id may come twice.
        """
        self._device = device or DeviceState()
        self._clock = clock
        self._last_ms = clock()
        self._volume = _number(self._device.volume, 0, 1)  # at the beginning
        self._background = self._paused = self._buffering = False
        self._watch_ms = 0
        self._event: FeedbackEvent | None = None
        self._told: dict[str, Any] = dict.fromkeys(self._device.counted, 0)
        self._base: dict[str, Any] = {
            "event_id": f"{session_id}/{position}" if event_id is None else event_id,
            "user_id": user_id,
            "session_id": session_id,
            "item_id": item_id,
            "position": position,
            "impression_ms": self._last_ms,
            "page_id": page_id,
            "experiment": experiment,
        }

    def did(self, action: Action, done: bool = True) -> None:
        """The user did it, or took it back. Raises ValueError for another action."""
        if action not in _ACTIONS:
            raise ValueError(f"expected one of {', '.join(sorted(_ACTIONS))}, got {action!r}")
        self._told[action] = done

    def paused(self) -> None:
        """The user paused. What the player does by itself in the background is not a pause."""
        self._elapse()
        if not self._paused and not self._background:
            self._count("pauses")
            self._paused = True

    def resumed(self) -> None:
        """The user goes on."""
        self._elapse()
        self._paused = False

    def buffering(self) -> None:
        """The player waits for bytes."""
        self._elapse()
        self._count("buffering_ms", 0)
        self._buffering = True

    def buffered(self) -> None:
        """The player has bytes again."""
        self._elapse()
        self._buffering = False

    def backgrounded(self) -> None:
        """The app left the screen."""
        self._elapse()
        self._told["backgrounded"] = self._background = True

    def foregrounded(self) -> None:
        """The app is back."""
        self._elapse()
        self._background = False

    def seeked(self) -> None:
        """The user jumped within the item."""
        self._count("seeks")

    def playback_rate(self, rate: float) -> None:
        """How fast it plays now, 1 is normal; the event has the last one."""
        if (known := _number(rate)) is not None and known > 0:
            self._told["playback_rate"] = known

    def scrolled(self, screens_per_s: float) -> None:
        """How fast the finger moved, in screens per second; the event has the last one, which is that of the swipe away."""
        if (known := _number(screens_per_s)) is not None:
            self._told["scroll_speed"] = abs(known)

    def finish(self, ended: Ended = Ended.SWIPE) -> FeedbackEvent:
        """The event, for `FeedSession.feedback`. `volume_change` is the last volume minus that at the beginning."""
        if self._event is None:
            self._elapse()
            told, device = self._told, self._device
            volume = _number(device.volume, 0, 1)
            if "backgrounded" in told:
                told["backgrounded"] = bool(told["backgrounded"])
            self._event = FeedbackEvent(
                **self._base,
                **told,
                watch_ms=self._watch_ms,
                ended=ended,
                volume=volume,
                volume_change=None if volume is None or self._volume is None else volume - self._volume,
                muted=device.muted,
                orientation=device.orientation,
                network=device.network,
                battery_saver=device.battery_saver,
            )
        return self._event

    def _count(self, name: Counted, by: int = 1) -> None:
        self._told[name] = self._told.get(name, 0) + by

    def _elapse(self) -> None:
        now_ms = self._clock()
        spent, self._last_ms = max(0, now_ms - self._last_ms), now_ms
        if self._background or self._paused:
            return
        if self._buffering:
            self._count("buffering_ms", spent)
        else:
            self._watch_ms += spent
