"""Device signals: noisy readings of moods, network and liking.

Volume and mute read the sound mood; orientation and pauses read patience; scroll speed, playback rate and seeks read
impatience; carrier and buffering read the network; a change of volume and a fast flick also reflect how much the user liked the
item.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from pocketrank.device.contract import Network, Orientation
from pocketrank.sdk_demo.world import luck
from pocketrank.sdk_demo.world.parameters import SignalConfig
from pocketrank.sdk_demo.world.state import State
from pocketrank.sdk_demo.world.users import MOODS

__all__ = ["SIGNAL_UNIFORMS", "DeviceSignals", "Viewing", "Signals"]

SIGNAL_UNIFORMS = 9
"""Uniform numbers that one reading uses: 4 become normal noise, 5 are used directly."""

_RATES = np.array([1.0, 1.5, 2.0])
_FLAG_NOISE = [4, 5, 6, 6]
_SOUND, _PATIENCE, _IMPATIENCE = (MOODS.index(m) for m in ("sound", "patience", "impatience"))


@dataclass(slots=True, frozen=True)
class Signals:
    """Device readings of one impression of each session, named and scaled as in `pocketrank.device.contract.FeedbackEvent`."""

    volume: Float[np.ndarray, " batch"]
    volume_change: Float[np.ndarray, " batch"]
    muted: Bool[np.ndarray, " batch"]
    orientation: Int64[np.ndarray, " batch"]
    playback_rate: Float[np.ndarray, " batch"]
    pauses: Int64[np.ndarray, " batch"]
    seeks: Int64[np.ndarray, " batch"]
    scroll_speed: Float[np.ndarray, " batch"]
    network: Int64[np.ndarray, " batch"]
    buffering_ms: Int64[np.ndarray, " batch"]
    battery_saver: Bool[np.ndarray, " batch"]
    backgrounded: Bool[np.ndarray, " batch"]


@dataclass(slots=True, frozen=True)
class Viewing:
    """Inputs of the readings of one impression of each session, besides the state.

    `duration` is in standard deviations of ln duration, `music` is 1 on music topics and 0 elsewhere, less its mean.
    """

    utility: Float[np.ndarray, " batch"]
    watch_ms: Int64[np.ndarray, " batch"]
    buffering_s: Float[np.ndarray, " batch"]
    duration: Float[np.ndarray, " batch"]
    music: Float[np.ndarray, " batch"]
    background: Bool[np.ndarray, " batch"]


class DeviceSignals:
    """Readings of the hidden state by a phone."""

    def __init__(self, config: SignalConfig) -> None:
        self._config = config
        c = config
        # Four binary readings are computed by one sigmoid: muted, landscape, faster, much faster.
        self._intercept = np.array(
            [c.mute_intercept, c.landscape_intercept, c.fast_intercept, c.fast_intercept - c.faster_step]
        )
        self._mood = np.zeros((len(MOODS), 4))
        self._mood[_SOUND, 0] = c.mute_sound
        self._mood[_PATIENCE, 1] = c.landscape_patience
        self._mood[_IMPATIENCE, 2:] = c.fast_impatience
        self._duration = np.array([0.0, c.landscape_duration, c.fast_impatience, c.fast_impatience])

    def expected_buffering(self, state: State, duration: Float[np.ndarray, "batch n"]) -> Float[np.ndarray, "batch n"]:
        """Return the expected buffering in seconds of items of `duration` (standard deviations of ln duration)."""
        c = self._config
        quality = state.network + c.wifi_gain * state.wifi
        log_s = c.buffering_log + c.buffering_network * quality[:, None] + c.buffering_duration * duration
        return np.minimum(np.exp(np.minimum(log_s, 20.0)), c.buffering_max_s)

    def read(self, state: State, shown: Viewing, noise: Float[np.ndarray, "batch uniforms"]) -> Signals:
        """Return the readings of one impression; `noise` holds `SIGNAL_UNIFORMS` uniform numbers per session."""
        c = self._config
        feeling = state.feeling
        z = luck.normals(noise[:, :4])
        # Columns 2 and 3 share one number, because playing much faster implies playing faster.
        flags = noise[:, _FLAG_NOISE] < self._flag_probability(feeling, shown.duration)
        change = c.change_sound * (shown.music + 0.5) * shown.utility + c.volume_noise * z[:, 1]
        change = np.where(np.abs(change) >= c.change_threshold, np.minimum(np.maximum(change, -0.5), 0.5), 0.0)
        scroll = c.scroll_log + c.scroll_impatience * feeling[:, _IMPATIENCE] + c.scroll_utility * shown.utility
        buffering = shown.buffering_s * 1000.0 * np.exp(c.buffering_noise * z[:, 3])
        # Geometric counts with the given mean m: floor(ln u / ln(m / (1 + m))).
        log_mean = np.stack(
            [
                c.pause_log_mean + c.pause_patience * feeling[:, _PATIENCE],
                c.seek_log_mean + c.seek_impatience * feeling[:, _IMPATIENCE],
            ],
            axis=1,
        )
        mean = np.exp(np.clip(log_mean, -20.0, 3.0)) * (shown.watch_ms[:, None] / 30_000.0) + 1e-9
        counts = np.floor(np.log(noise[:, 7:]) / (np.log(mean) - np.log1p(mean))).astype(np.int64)
        return Signals(
            volume=0.5 + 0.5 * np.tanh(0.5 * (c.volume_sound * feeling[:, _SOUND] + c.volume_noise * z[:, 0])),
            volume_change=change,
            muted=flags[:, 0],
            orientation=np.where(flags[:, 1], int(Orientation.LANDSCAPE), int(Orientation.PORTRAIT)),
            playback_rate=_RATES[flags[:, 2] + flags[:, 3].astype(np.int64)],
            pauses=counts[:, 0],
            seeks=counts[:, 1],
            scroll_speed=np.exp(np.clip(scroll + c.scroll_noise * z[:, 2], -5.0, 3.0)),
            network=np.where(state.wifi, int(Network.WIFI), int(Network.CELLULAR)),
            buffering_ms=np.where(buffering >= c.buffering_threshold_ms, buffering, 0.0).astype(np.int64),
            battery_saver=state.saver,
            backgrounded=shown.background,
        )

    def _flag_probability(
        self, feeling: Float[np.ndarray, "batch moods"], duration: Float[np.ndarray, " batch"]
    ) -> Float[np.ndarray, "batch 4"]:
        logit = self._intercept + feeling @ self._mood + duration[:, None] * self._duration
        probability: Float[np.ndarray, "batch 4"] = 0.5 + 0.5 * np.tanh(0.5 * logit)
        return probability
