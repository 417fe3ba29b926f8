"""Columns of feedback on a past impression, on the device and in the cloud, for training and serving alike."""

from __future__ import annotations

from pocketrank.device.contract import FloatFeature

__all__ = ["FEEDBACK_FLOATS", "HISTORY_FEEDBACK"]

FEEDBACK_FLOATS = (
    FloatFeature(name="watch_ms", scale=1e-3, min=0, max=1800),
    *[
        FloatFeature(name=name, min=0, max=1)
        for name in ("click", "like", "follow", "comment", "share", "profile_enter", "dislike")
    ],
    FloatFeature(name="ended", min=0, max=3),
    FloatFeature(name="volume", min=0, max=1, default=0.5),
    FloatFeature(name="volume_change", min=-1, max=1),
    FloatFeature(name="muted", min=0, max=1),
    FloatFeature(name="orientation", min=0, max=1),
    FloatFeature(name="playback_rate", min=0.25, max=4, default=1),
    FloatFeature(name="pauses", min=0, max=10),
    FloatFeature(name="seeks", min=0, max=10),
    FloatFeature(name="scroll_speed", min=0, max=10),
    FloatFeature(name="network", min=0, max=2, default=2),
    FloatFeature(name="buffering_ms", scale=1e-3, min=0, max=60),
    FloatFeature(name="battery_saver", min=0, max=1),
    FloatFeature(name="backgrounded", min=0, max=1),
)
"""Feedback features of a device model; its spec leaves out those whose column is empty in the log."""

HISTORY_FEEDBACK = ("long_view", "like", "watch_log", "engaged", "logged")
"""Feedback features of a past event in the cloud: watch_log is log1p(seconds), engaged is click or effective view, and logged
is 0 for events from before the log, of which only long_view and like are known."""
