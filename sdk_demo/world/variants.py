"""Worlds that differ from another in one thing, to see what a result hangs on.

A variant keeps catalogue and users, and the log's rates within a few per cent, so that what differs between two worlds is the
one thing its name says. All numbers are choices of ours, large enough for the worlds to differ clearly.
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
    """One change of a world. Called with a world's config, gives that of the changed world."""

    says: str
    """What differs, for readers."""
    changes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Section → key → its value here; everything else stays."""
    feedback_delay_s: float = 0.0
    """How long a phone of this world holds feedback back; see `pocketrank.sdk_demo.emulator.phone`."""

    def __call__(self, config: WorldConfig) -> WorldConfig:
        """The changed world. Raises `WorldConfigError` for a key or value that no world has."""
        raw: dict[str, Any] = msgspec.to_builtins(config)
        for section, values in self.changes.items():
            raw[section] = raw.get(section, {}) | values
        return WorldConfig.parse(raw, file="variant")


VARIANTS: dict[str, Variant] = {
    "default": Variant("the world as it is"),
    "faster_drift": Variant(
        "intent and moods change faster",
        # The focus jumps twice a session instead of once in 50 impressions; half of the deviation is gone after 3 impressions
        # instead of 13, half of a mood after 7 instead of 23. What is stationary stays as it was.
        {"session": {"jump_rate": 0.1, "drift_memory": 0.8, "mood_memory": 0.9}},
    ),
    "longer_feedback_delay": Variant(
        "the cloud learns of feedback 5 minutes later",
        # Some 12 impressions. The median session is over by then, a mean one lasts 8 minutes.
        feedback_delay_s=300.0,
    ),
    "weaker_signals": Variant(
        "the device's readings tell little of the user's moods",
        # Slopes are a tenth, noise is double; intercepts make up for it, so that nothing is read more or less often. What the
        # mean of ten readings tells of sound, patience and impatience (linear R²) falls from .87, .62, .82 to .58, .13, .09.
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
