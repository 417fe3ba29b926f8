from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pocketrank.sdk_demo.world import DEFAULT_WORLD, World, WorldConfig, WorldConfigError
from pocketrank.sdk_demo.world.calibrate import calibrate, measure, write_calibrated
from tests.sdk_demo.world.worlds import small


def test_calibration_finds_its_targets_from_afar() -> None:
    config = small(users=300)
    replace = msgspec.structs.replace
    far = replace(
        config,
        watch=replace(config.watch, intercept=config.watch.intercept + 1.0, scale=2.0),
        actions=replace(config.actions, like_intercept=-2.0),
        exit=replace(config.exit, intercept=config.exit.intercept + 0.5),
    )
    targets = config.targets
    assert measure(World(far).simulate_log(seed=1))["effective_view"] > targets.effective_view + 0.05
    got = measure(World(calibrate(far, rounds=6)).simulate_log(seed=1))
    assert got["effective_view"] == pytest.approx(targets.effective_view, abs=0.03)
    assert got["long_view"] == pytest.approx(targets.long_view, abs=0.03)
    assert got["like"] == pytest.approx(targets.like, abs=0.006)
    assert got["session_impressions"] == pytest.approx(targets.session_impressions, rel=0.15)


def test_values_are_written_in_place(tmp_path: Path) -> None:
    file = tmp_path / "world.toml"
    file.write_text(DEFAULT_WORLD.read_text(encoding="utf-8"), encoding="utf-8")
    config = WorldConfig.load(file)
    replace = msgspec.structs.replace
    moved = replace(config, watch=replace(config.watch, intercept=-1.25, scale=0.5), exit=replace(config.exit, intercept=3.5))
    write_calibrated(moved, file)
    assert WorldConfig.load(file) == moved
    before, after = (path.read_text(encoding="utf-8").splitlines() for path in (DEFAULT_WORLD, file))
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 3
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_without_the_line_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "world.toml"
    text = DEFAULT_WORLD.read_text(encoding="utf-8").replace("[exit]\nintercept = ", "[exit]\n'intercept' = ")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(WorldConfigError, match=r"exit\.intercept"):
        write_calibrated(WorldConfig.load(file), file)
    assert file.read_text(encoding="utf-8") == text
