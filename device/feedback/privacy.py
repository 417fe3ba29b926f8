"""What may leave the device. The model on the device still sees everything.

The user, item, session and time of an event always leave (`ALWAYS`): without them it belongs to nothing. Everything else is
withheld unless the policy names it. A withheld field has its default, as if nobody had reported it: None for a signal, False
for an action, and a swipe for how the impression ended. Whoever trains on the events must know which fields were withheld. By
default the `ACTIONS` and the page id may leave, and with a bundle also the features that its model was trained on.

A policy is applied just before bytes leave. To apply it again changes nothing.

Errors::

    PrivacyError               a name that is no field of an event, or one that always leaves; a step that its field cannot have
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from pocketrank.device.contract import FeatureSpec, FeedbackEvent, PageRequest

__all__ = ["ACTIONS", "ALWAYS", "PrivacyError", "PrivacyPolicy"]

ALWAYS = frozenset(
    {"version", "event_id", "user_id", "session_id", "item_id", "position", "impression_ms", "age_ms", "watch_ms", "experiment"}
)
"""Fields that leave whatever the policy: those that an event must have, its age, by which a wrong date is corrected, and its
experiment, since the feedback of one arm would otherwise teach the others."""

ACTIONS = frozenset({"click", "like", "follow", "comment", "share", "profile_enter", "dislike", "actions"})
"""Actions of the user, which the models are trained to predict. `actions` are all of the app's own."""

_FIELDS = {f.name: f.default for f in msgspec.structs.fields(FeedbackEvent)}
_WHOLE = frozenset({"impression_ms", "watch_ms", "pauses", "seeks", "buffering_ms"})
_FRACTIONS = frozenset({"volume", "volume_change", "playback_rate", "scroll_speed"})
_DIGITS = 12  # so that .3 leaves as .3, not as .30000000000000004


class PrivacyError(ValueError):
    """Invalid policy. `expected` and `got` say why."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"privacy policy: expected {expected}, got {got}")
        self.expected, self.got = expected, got


@dataclass(frozen=True)
class PrivacyPolicy:
    """Which fields may leave, and how exact they are. Raises `PrivacyError`."""

    fields: frozenset[str] = ACTIONS | {"page_id"}
    """Fields of a `FeedbackEvent` that may leave in addition to `ALWAYS`. `page_id` says what else could have been shown, and
    training on lists needs it."""
    steps: Mapping[str, float] = field(default_factory=dict)
    """Field → step that its values are rounded to: {"volume": 0.1, "watch_ms": 1000}. Whole numbers are rounded towards 0,
    others to the nearest. A watch to the end may then look shorter than its item, and no longer count as a long view."""
    exclude: bool = True
    """Whether a page request lists the items that were shown. If not, the cloud may send them again, and the session drops
    them."""
    telemetry: bool = True
    """Whether requests and batches carry the session's telemetry."""

    _withheld: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _rounders: dict[str, Callable[[Any], Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.fields, _FIELDS.keys() - ALWAYS)
        _check(self.steps, _WHOLE | _FRACTIONS)
        # Computed once, so that an event costs one copy.
        self._withheld.update({name: _FIELDS[name] for name in _FIELDS.keys() - ALWAYS - self.fields})
        for name, step in self.steps.items():
            if not (math.isfinite(step) and step > 0 and (name in _FRACTIONS or step == int(step))):
                raise PrivacyError(f"a step above 0 for `{name}`, a whole one for whole numbers", repr(step))
            if name not in self._withheld:
                self._rounders[name] = _cut(int(step)) if name in _WHOLE else _nearest(step)

    @classmethod
    def for_spec(cls, spec: FeatureSpec) -> PrivacyPolicy:
        """Return the default policy, which also lets the feedback features leave that the model of this spec is trained on."""
        names = (f.name if f.name in _FIELDS else "actions" for f in spec.feedback_floats)
        return cls().allow(*(name for name in names if name not in ALWAYS))

    def allow(self, *names: str) -> PrivacyPolicy:
        """Return a policy by which these fields may leave too."""
        return replace(self, fields=self.fields.union(names))

    def withhold(self, *names: str) -> PrivacyPolicy:
        """Return a policy by which these fields may not leave."""
        _check(names, _FIELDS.keys() - ALWAYS)
        return replace(self, fields=self.fields.difference(names))

    def event(self, event: FeedbackEvent) -> FeedbackEvent:
        """Return `event` with only what may leave."""
        changes = self._withheld
        if self._rounders:
            changes = changes.copy()
            for name, rounded in self._rounders.items():
                if (value := getattr(event, name)) is not None:
                    changes[name] = rounded(value)
            if event.age_ms is not msgspec.UNSET and "impression_ms" in changes:  # an exact age would give the date away
                changes["age_ms"] = event.age_ms + event.impression_ms - changes["impression_ms"]
        return msgspec.structs.replace(event, **changes) if changes else event

    def request(self, request: PageRequest) -> PageRequest:
        """Return `request` and the feedback in it with only what may leave."""
        return msgspec.structs.replace(
            request,
            feedback=tuple(map(self.event, request.feedback)),
            exclude=request.exclude if self.exclude else (),
            telemetry=request.telemetry if self.telemetry else None,
        )


def _check(names: Iterable[str], known: Set[str]) -> None:
    if unknown := sorted(set(names) - known):
        raise PrivacyError(f"names among {', '.join(sorted(known))}", ", ".join(unknown))


def _cut(step: int) -> Callable[[int], int]:
    return lambda value: value - value % step if value >= 0 else value + -value % step


def _nearest(step: float) -> Callable[[float], float]:
    # `%` is defined for every float; `round` without digits raises for NaN and infinities.
    return lambda value: round((up := value + step / 2) - up % step, _DIGITS)
