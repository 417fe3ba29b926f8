from __future__ import annotations

import numpy as np
import pytest

from pocketrank.device.contract import Network, Orientation
from pocketrank.sdk_demo.world import World
from pocketrank.sdk_demo.world.luck import keys_from, step_keys
from pocketrank.sdk_demo.world.response import Outcomes, ResponseModel
from pocketrank.sdk_demo.world.state import State
from tests.sdk_demo.world.worlds import small

WORLD = World(small())
MODEL = ResponseModel(WORLD.config, WORLD.items, WORLD.users)
BATCH = 5000


@pytest.fixture(scope="module")
def moment() -> tuple[State, Outcomes]:
    """Many first impressions, and the hidden states behind them."""
    users = np.arange(BATCH) % len(WORLD.users)
    keys = step_keys(keys_from(21, batch=BATCH), 0, np.arange(BATCH))
    state = MODEL.path.start(keys, users, np.zeros(BATCH, dtype=np.int64))
    before = state.take(np.ones(BATCH, dtype=np.bool_))
    return before, MODEL.watch(state, np.arange(BATCH) * 17 % len(WORLD.items))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.astype(float), b.astype(float))[0, 1])


def test_readings_tell_of_the_moods(moment: tuple[State, Outcomes]) -> None:
    state, o = moment
    sound, patience, impatience = state.feeling.T
    s = o.signals
    assert correlation(s.volume, sound) > 0.8
    assert correlation(s.muted, sound) < -0.4
    assert correlation(s.orientation == Orientation.LANDSCAPE, patience) > 0.3
    assert correlation(np.log(s.scroll_speed), impatience) > 0.5
    assert correlation(s.playback_rate, impatience) > 0.1
    assert correlation(s.buffering_ms > 0, state.network) < -0.2
    assert np.array_equal(s.network == Network.WIFI, state.wifi)
    assert np.array_equal(s.battery_saver, state.saver)


def test_readings_tell_of_liking_beyond_watch_time(moment: tuple[State, Outcomes]) -> None:
    state, o = moment
    chance = MODEL.probabilities(state, o.item[:, None])["effective_view"][:, 0]
    for seen in (o.effective_view, ~o.effective_view):
        assert correlation(np.log(o.signals.scroll_speed[seen]), chance[seen]) < -0.1
        assert correlation(o.signals.volume_change[seen], chance[seen]) > 0.1


def test_readings_are_noisy_and_on_the_contract_s_scale(moment: tuple[State, Outcomes]) -> None:
    state, o = moment
    s = o.signals
    assert correlation(s.volume, state.feeling[:, 0]) < 0.999
    assert ((s.volume >= 0) & (s.volume <= 1)).all()
    change = np.abs(s.volume_change)
    assert ((change == 0) | (change >= WORLD.config.signals.change_threshold)).all()
    assert change.max() <= 0.5
    assert 0.02 < (change > 0).mean() < 0.6
    assert set(np.unique(s.playback_rate)) <= {1.0, 1.5, 2.0}
    for count in (s.pauses, s.seeks):
        assert count.min() == 0
        assert 0 < (count > 0).mean() < 0.5
    assert 0.02 < (s.orientation == Orientation.LANDSCAPE).mean() < 0.5
    assert 0.05 < s.muted.mean() < 0.6
