"""Variants of a world that differ in one property, to see which results depend on it.

A variant keeps the catalogue and the users, and the log's rates within a few per cent, so that two worlds differ only in the
property that the variant is named for. All numbers are choices of ours, large enough for the worlds to differ clearly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pocketrank.sdk_demo.world.config import WorldConfig

__all__ = ["VARIANTS", "Variant"]


@dataclass(frozen=True)
class Variant:
    """A change to a world: a function from a world's config to that of the changed world."""

    description: str
    """The difference, for readers."""
    changes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Section → key → changed value."""
    feedback_delay_s: float = 0.0
    """Delay of a phone's feedback; see `pocketrank.sdk_demo.emulator.phone`."""

    def __call__(self, config: WorldConfig) -> WorldConfig:
        """Return the changed world. Raises `WorldConfigError` for an unknown key or a value out of range."""
        raw: dict[str, Any] = msgspec.to_builtins(config)
        for section, values in self.changes.items():
            raw[section] = raw.get(section, {}) | values
        return WorldConfig.parse(raw, file="variant")


VARIANTS: dict[str, Variant] = {
    "default": Variant("the unchanged world"),
    "faster_drift": Variant(
        "intent and moods change faster",
        # The focus jumps twice a session instead of once in 50 impressions. Half of the deviation is gone after 3 impressions
        # instead of 13, half of a mood after 7 instead of 23. The stationary distributions do not change.
        {"session": {"jump_rate": 0.1, "drift_memory": 0.8, "mood_memory": 0.9}},
    ),
    "longer_feedback_delay": Variant(
        "feedback reaches the cloud 5 minutes later",
        # About 12 impressions. The median session has ended by then; the mean session lasts 8 minutes.
        feedback_delay_s=300.0,
    ),
    "weaker_signals": Variant(
        "the device's readings depend little on the user's moods",
        # Slopes are a tenth and noise is doubled; intercepts compensate, so that no reading becomes more or less frequent. The
        # linear R² of the mean of ten readings for sound, patience and impatience falls from .87, .62, .82 to .58, .13, .09.
        {
            "signals": {
                "volume_sound": 0.12,
                "volume_noise": 0.3,
                "change_sound": 0.02,
                "mute_intercept": -0.83,
                "mute_sound": -0.2,
                "landscape_intercept": -1.43,
                "landscape_patience": 0.22,
                "fast_intercept": -1.83,
                "fast_impatience": 0.1,
                "pause_log_mean": -0.3,
                "pause_patience": 0.08,
                "seek_impatience": 0.06,
                "scroll_log": -0.3,
                "scroll_impatience": 0.05,
                "scroll_utility": -0.025,
                "scroll_noise": 0.7,
            }
        },
    ),
}
"""Every variant by its name."""
