"""A search: its trials are runs, it continues, and the test days have no part in it."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketrank.cloud.data.days import day_of, days
from pocketrank.cloud.data.log import before_day, save_log
from pocketrank.cloud.data.schema import DataError, ImpressionLog
from pocketrank.cloud.training.device_model import DeviceModelConfig
from pocketrank.cloud.training.recipe import DEFAULT_RECIPE, RecipeError
from pocketrank.cloud.training.run import Run
from pocketrank.cloud.training.train import TrainConfig
from pocketrank.cloud.training.tune import Choice, Range, TuneError, parse_space, tune
from pocketrank.sdk_demo.world import World
from tests.sdk_demo.world.worlds import small

QUICK = TrainConfig(device=DeviceModelConfig(epochs=1), joint=DeviceModelConfig(epochs=1), no_feedback=False)


@pytest.fixture(scope="module")
def log() -> ImpressionLog:
    return World(small(users=16, items=120)).simulate_log(seed=1)


def test_a_search_continues_and_its_trials_are_runs(log: ImpressionLog, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs pocketrank[tune]")
    last = day_of(int(days(log).max()))
    options: dict[str, Any] = {
        "out": tmp_path / "tune",
        "space": parse_space(["ranker.learning_rate=1e-4..1e-2 log", "device_model.device.neighbours=[8, 16]"]),
        "parts": DEFAULT_RECIPE,
        "config": QUICK,
        "validate_from": last - timedelta(2),
        "test_from": last,
    }
    first = tune(log, trials=1, **options)
    both = tune(log, trials=2, **options)
    assert sorted(trial.number for trial in both) == [0, 1]
    assert first[0] in both
    assert both[0].value >= both[1].value
    for trial in both:
        run = Run.open(tmp_path / "tune" / f"trial-{trial.number}")
        assert run.record.config["stream"]["learning_rate"] == trial.settings["ranker.learning_rate"]
        assert run.record.config["device"]["neighbours"] == trial.settings["device_model.device.neighbours"]
        assert run.record.data_digest == before_day(log, last).digest()
    with pytest.raises(TuneError, match="Expected the search that was begun here"):
        tune(log, trials=2, **(options | {"config": replace(QUICK, threads=2)}))
    with pytest.raises(RecipeError, match="Expected one of ranker, batch"):
        tune(log, trials=2, **(options | {"space": parse_space(["ranker.speed=1..2"])}))


def test_a_log_before_a_day_has_none_of_it(log: ImpressionLog, tmp_path: Path) -> None:
    first, last = (day_of(int(day)) for day in (days(log).min(), days(log).max()))
    stored = save_log(log, tmp_path / "log")
    for day in (last, first + timedelta(3)):
        cut, read = before_day(log, day), before_day(stored, day)
        assert cut.rows == read.rows == int((days(log) < (day - day_of(0)).days).sum())
        assert read.digest() != stored.digest()
        assert sum(map(len, read.parts())) == cut.rows
        ms = np.concatenate([part["impression_ms"].to_numpy() for part in read.parts()])
        np.testing.assert_array_equal(ms, log.impressions["impression_ms"].to_numpy()[: cut.rows])
    for one in (log, stored):
        with pytest.raises(DataError, match="expected impressions before"):
            before_day(one, first)


def test_spaces_are_parsed() -> None:
    assert parse_space(["a.b=1..4", "a.c = 1e-4..1e-2 log", 'a.d=["x", 2]']) == {
        "a.b": Range(1, 4),
        "a.c": Range(1e-4, 1e-2, True),
        "a.d": Choice(("x", 2)),
    }
    for wrong in ("a", "a=", "=1..2", "a=2..1", "a=0..1 log", "a=1..2 lin", "a=1", "a=[1", "a=nan..1"):
        with pytest.raises(TuneError, match=r"Expected PART\.NAME=LOW\.\.HIGH"):
            parse_space([wrong])
    with pytest.raises(TuneError, match="at least one"):
        parse_space([])
