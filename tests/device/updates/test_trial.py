from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketrank.device.codec import from_json, to_json
from pocketrank.device.contract import ScoreRange
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.runtimes.base import RuntimeRunError
from pocketrank.device.updates import Trial, TrialConfig
from pocketrank.device.updates.trial import Figures, unwatch, watch
from tests.device.worlds import SPEC, make_bundle, widths

CONFIG = TrialConfig(runs=10, failures=3, failure_share=0.2, ms_max=20, slower=2, ms_free=1, samples=4)
RANGE = ScoreRange(form="split", mean=(0.5, 0.1), std=(0.1, 0.02))


def _after(trial: Trial, runs: int = 10, ms: float = 3.0, failed: int = 0) -> str | None:
    for _ in range(failed):
        trial.failed("run")
        trial.ran(ms)
    for _ in range(runs - 2 * failed):
        trial.ran(ms)
    return trial.verdict()


def _scores(mean: tuple[float, float] = (0.5, 0.1), std: tuple[float, float] = (0.1, 0.02)) -> NDArray[np.float32]:
    z = np.random.default_rng(0).normal(size=(60, 2))
    return np.asarray(np.array(mean) + z * np.array(std), np.float32)


def test_a_healthy_bundle_is_trusted_after_enough_runs() -> None:
    trial = Trial(CONFIG)
    assert _after(trial, 9) is None
    assert _after(trial, 1) == ""


def test_failures_in_a_row_end_it_at_once() -> None:
    trial = Trial(CONFIG)
    trial.failed("run")
    trial.failed("scores")
    trial.ran(1.0)
    assert trial.verdict() is None
    for _ in range(3):
        trial.failed("run")
    assert trial.verdict() == "3 failures in a row: run 4, scores 1"


def test_more_failures_than_the_previous_bundle() -> None:
    assert _after(Trial(CONFIG), failed=2) == ""
    assert _after(Trial(CONFIG), failed=3) == "30% of runs failed: run 3"
    assert _after(Trial(CONFIG, baseline=Figures(failures=1, ms=(3.0,) * 9)), failed=3) == ""


@pytest.mark.parametrize(
    ("before", "now", "healthy"),
    [(None, 19, True), (None, 21, False), (3, 6, True), (3, 7, False), (0.1, 0.9, True), (15, 21, False)],
)
def test_slower_than_the_previous_bundle(before: float | None, now: float, healthy: bool) -> None:
    verdict = _after(Trial(CONFIG, baseline=None if before is None else Figures(ms=(before,))), ms=now)
    assert verdict is not None
    assert (verdict == "") is healthy
    assert ("median" in verdict) is not healthy


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        (_scores(), ""),
        (_scores(mean=(0.7, 0.1)), ""),
        (_scores(mean=(0.9, 0.1)), "task 0 has a mean score"),
        (_scores(mean=(0.5, 0.01)), "task 1 has a mean score"),
        (_scores(std=(0.1, 0.0)), "scores of task 1 have a standard deviation"),
        (np.full((60, 2), np.nan, np.float32), "29% of runs failed"),
    ],
    ids=["as_recorded", "another_user", "far_up", "far_down", "all_the_same", "nan"],
)
def test_scores_that_drift(scores: NDArray[np.float32], why: str) -> None:
    trial = Trial(CONFIG, ranges=[RANGE])
    for _ in range(6):
        trial.scores("split", scores)
    verdict = _after(trial)
    assert verdict is not None
    assert (verdict == "") is (why == "")
    assert verdict.startswith(why)


def test_scores_without_a_recorded_range_are_not_judged() -> None:
    trial = Trial(CONFIG, ranges=[RANGE])
    trial.scores("self_contained", _scores(mean=(9, 9)))
    assert _after(trial) == ""


def test_samples_are_copies_and_few() -> None:
    trial = Trial(CONFIG)
    scores = _scores()
    for _ in range(9):
        trial.scores("split", scores)
        scores[:] = 7
    assert trial.figures.scores["split"][0][0] == 4 * 60
    assert trial.samples_left == 0


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["ran", "failed", "scores"]), max_size=30), st.integers(0, 30))
def test_a_restart_in_the_middle_changes_nothing(events: list[str], at: int) -> None:
    config = TrialConfig(runs=10, failures=99, samples=99)

    def feed(trial: Trial, events: list[str]) -> Trial:
        for i, event in enumerate(events):
            if event == "scores":
                trial.scores("split", _scores() * (i + 1))
            else:
                trial.ran(float(i)) if event == "ran" else trial.failed("run")
        return trial

    begun = feed(Trial(config), events[:at]).figures
    resumed = feed(Trial(config, figures=from_json(to_json(begun), Figures)), events[at:])
    straight = feed(feed(Trial(config), events[:at]), events[at:])
    assert resumed.figures.ms == straight.figures.ms
    assert resumed.figures.failures == straight.figures.failures
    for form, rows in straight.figures.scores.items():
        np.testing.assert_allclose(resumed.figures.scores[form], rows)
    assert (resumed.verdict() is None) == (straight.verdict() is None)


def test_a_watched_ranker_reports_every_run(tmp_path: Path) -> None:
    ranker = Ranker.open(make_bundle(tmp_path))
    plain = dict(ranker.runtimes["split"])
    trial = Trial(CONFIG)
    watch(ranker, trial)
    again = Ranker(SPEC, ranker.split_version, ranker.runtimes)  # tries each form once, on zeros
    assert trial.figures.runs == 2
    assert {form: rows[0][0] for form, rows in trial.figures.scores.items()} == {
        "split": again.rows,
        "self_contained": again.rows,
    }
    with pytest.raises(RuntimeRunError):
        ranker.runtimes["split"]["whole"].run_all({})
    assert trial.figures.failures == 1
    unwatch(ranker)
    assert ranker.runtimes["split"] == plain


def test_a_watched_ranker_reports_nan(tmp_path: Path) -> None:
    ranker = Ranker.open(make_bundle(tmp_path, poison=float("nan")))
    trial = Trial(CONFIG)
    watch(ranker, trial)
    whole = ranker.runtimes["self_contained"]["whole"]
    shapes = {name: (1, *(4 if isinstance(d, str) else d for d in widths(SPEC)[name])) for name in whole.input_names}
    whole.run_all(
        {name: np.ones(shape, np.int32 if name.endswith("category") else np.float32) for name, shape in shapes.items()}
    )
    assert (trial.figures.failures, trial.figures.runs) == (1, 0)
