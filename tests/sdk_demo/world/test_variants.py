from __future__ import annotations

import msgspec
import numpy as np
import pytest

from pocketrank.sdk_demo.world import VARIANTS, Variant, World, WorldConfig, WorldConfigError
from pocketrank.sdk_demo.world.calibrate import measure
from tests.sdk_demo.world.worlds import small


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_its_own_keys_and_nothing_else(name: str) -> None:
    base, variant = WorldConfig.load(), VARIANTS[name]
    before, after = msgspec.to_builtins(base), msgspec.to_builtins(variant(base))
    changed = {
        section: {key: value for key, value in after[section].items() if value != before[section][key]}
        for section in before
        if after[section] != before[section]
    }
    assert changed == variant.changes
    assert bool(changed) + bool(variant.feedback_delay_s) == (name != "default"), "one thing differs"


@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].changes])
def test_users_items_and_rates_stay(name: str) -> None:
    base = small(users=600)
    one, other = World(base), World(VARIANTS[name](base))
    np.testing.assert_array_equal(one.users.taste, other.users.taste)
    assert one.items.table() == other.items.table()
    before, after = measure(one.simulate_log(seed=3)), measure(other.simulate_log(seed=3))
    assert after["effective_view"] == pytest.approx(before["effective_view"], abs=0.02)
    assert after["long_view"] == pytest.approx(before["long_view"], abs=0.02)
    assert after["like"] == pytest.approx(before["like"], abs=0.004)
    assert after["session_impressions"] == pytest.approx(before["session_impressions"], rel=0.08)


def test_readings_are_as_frequent_in_the_world_where_they_tell_less() -> None:
    base = small(users=600)
    rates = []
    for config in (base, VARIANTS["weaker_signals"](base)):
        rows = World(config).simulate_log(seed=3).impressions
        columns = [rows[name].to_numpy(zero_copy_only=False).astype(float) for name in ("muted", "orientation", "scroll_speed")]
        rates.append([column.mean() for column in columns])
    assert rates[1] == pytest.approx(rates[0], rel=0.1)


@pytest.mark.parametrize(("section", "key"), [("session", "jumps"), ("moods", "sound"), ("session", "jump_rate")])
def test_a_change_that_no_world_has_is_refused(section: str, key: str) -> None:
    with pytest.raises(WorldConfigError, match="variant"):
        Variant("what is not", {section: {key: 2.0}})(small())
