"""What may leave the device. The model on the device still sees everything.

Who, what, where and when of an event always leave (`ALWAYS`): without them it belongs to nothing. Everything else is withheld
unless the policy names it: an event then says what it would if nothing had been told, None for a signal, False for an action
and a swipe for its end; who trains must know that these were withheld. Without a bundle the `ACTIONS`
and the page leave besides; with one, also what its model was trained on.

A policy is applied where bytes leave, as late as can be, and may be applied again: the second time changes nothing.

Errors::

    PrivacyError               a name that is no field of an event or always leaves, or a step that its field cannot have
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
    {"version", "event_id", "user_id", "session_id", "item_id", "position", "impression_ms", "watch_ms", "experiment"}
)
"""Fields that leave whatever the policy: those that an event must have, and its experiment, since an arm's feedback that came
without it would teach the others."""

ACTIONS = frozenset({"click", "like", "follow", "comment", "share", "profile_enter", "dislike"})
"""What the user did, which the models are trained to foresee."""

_FIELDS = {f.name: f.default for f in msgspec.structs.fields(FeedbackEvent)}
_WHOLE = frozenset({"impression_ms", "watch_ms", "pauses", "seeks", "buffering_ms"})
_FRACTIONS = frozenset({"volume", "volume_change", "playback_rate", "scroll_speed"})
_DIGITS = 12  # so that .3 leaves as .3, not as .30000000000000004


class PrivacyError(ValueError):
    """A policy that cannot be. `expected` and `got` say why."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"privacy policy: expected {expected}, got {got}")
        self.expected, self.got = expected, got


@dataclass(frozen=True)
class PrivacyPolicy:
    """Which fields leave, and how exactly. Raises `PrivacyError`."""

    fields: frozenset[str] = ACTIONS | {"page_id"}
    """Fields of a `FeedbackEvent` that may leave besides `ALWAYS`. `page_id` says what else could have been shown, without
    which a list cannot be trained on."""
    steps: Mapping[str, float] = field(default_factory=dict)
    """By field, the step it is told in: {"volume": 0.1, "watch_ms": 1000}. Whole numbers are cut towards 0, others go to the
    nearest. A watch to the end may then read as shorter than its item, and no longer count as a long view."""
    exclude: bool = True
    """A page request may list the items that were shown. Without, the cloud may send them again; the session drops them."""
    telemetry: bool = True
    """A page request may carry what the device counted of itself."""

    _withheld: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _rounders: dict[str, Callable[[Any], Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.fields, _FIELDS.keys() - ALWAYS)
        _check(self.steps, _WHOLE | _FRACTIONS)
        # Made once: an event then costs one copy.
        self._withheld.update({name: _FIELDS[name] for name in _FIELDS.keys() - ALWAYS - self.fields})
        for name, step in self.steps.items():
            if not (math.isfinite(step) and step > 0 and (name in _FRACTIONS or step == int(step))):
                raise PrivacyError(f"a step above 0 for `{name}`, a whole one for whole numbers", repr(step))
            if name not in self._withheld:
                self._rounders[name] = _cut(int(step)) if name in _WHOLE else _nearest(step)

    @classmethod
    def for_spec(cls, spec: FeatureSpec) -> PrivacyPolicy:
        """The default, and what the model of an installed bundle is trained on: the feedback features that its spec names."""
        return cls().allow(*(f.name for f in spec.feedback_floats if f.name not in ALWAYS))

    def allow(self, *names: str) -> PrivacyPolicy:
        """This policy with these fields leaving too."""
        return replace(self, fields=self.fields.union(names))

    def withhold(self, *names: str) -> PrivacyPolicy:
        """This policy without these fields."""
        _check(names, _FIELDS.keys() - ALWAYS)
        return replace(self, fields=self.fields.difference(names))

    def event(self, event: FeedbackEvent) -> FeedbackEvent:
        """What of `event` may leave."""
        changes = self._withheld
        if self._rounders:
            changes = changes.copy()
            for name, rounded in self._rounders.items():
                if (value := getattr(event, name)) is not None:
                    changes[name] = rounded(value)
        return msgspec.structs.replace(event, **changes) if changes else event

    def request(self, request: PageRequest) -> PageRequest:
        """What of `request` and of the feedback in it may leave."""
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
    # `%` has an answer for whatever a float can be; `round` without digits raises for NaN and infinities.
    return lambda value: round((up := value + step / 2) - up % step, _DIGITS)
