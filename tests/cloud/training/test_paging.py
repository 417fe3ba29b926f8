from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pocketrank.cloud.training.paging import UpliftConfig, UpliftLog, train_uplift
from pocketrank.device.paging import FEATURES, UpliftPaging

BEST = FEATURES.index("best")
LOW, GAIN = 0.3, 0.3


def known_log(sessions: int, seed: int = 0) -> UpliftLog:
    """Asking wins `GAIN` where the best left is below `LOW` and nothing elsewhere; large pages win a little at each item.

    Good sessions ask more often, and all the worth of a session shows in its views: who compares those who asked with those who
    did not finds a gain that is not there.
    """
    rng = np.random.default_rng(seed)
    lengths = 1 + rng.geometric(1 / 15, sessions)
    session = np.repeat(np.arange(sessions), lengths)
    n = len(session)
    good = rng.random(sessions) < 0.5
    x = np.column_stack([rng.random((n, 4)), rng.normal(size=(n, len(FEATURES) - 4))])
    first = np.r_[True, session[1:] != session[:-1]]
    x[first] = np.nan
    probability = np.where(first, 1.0, np.where(good, 0.3, 0.05)[session])
    asked = rng.random(n) < probability
    size = np.zeros(n, np.int64)
    depth = np.zeros(n, np.int64)
    for i in range(n):
        if not asked[i] and depth[i - 1] + 1 == size[i - 1]:  # nothing is left
            asked[i], probability[i] = True, 1.0
        size[i], depth[i] = (rng.choice([10, 40]), 0) if asked[i] else (size[i - 1], depth[i - 1] + 1)
    rate = 0.2 + 0.3 * good[session] + GAIN * (asked & (x[:, BEST] < LOW)) + 0.03 * (size == 40)
    return UpliftLog(
        names=FEATURES,
        x=x,
        session=session,
        asked=asked,
        probability=probability,
        size=size,
        depth=depth,
        effective=rng.random(n) < rate,
        simulated=True,
    )


@pytest.fixture(scope="module")
def log() -> UpliftLog:
    return known_log(2000)


def test_a_known_uplift_is_recovered_although_good_sessions_ask_more(log: UpliftLog) -> None:
    model = train_uplift(log)
    policy = UpliftPaging(model)
    known = np.isfinite(log.x).all(1)
    gain = np.array([policy.gain(tuple(row)) for row in log.x[known].tolist()])
    low = log.x[known, BEST] < LOW
    assert gain[low].mean() == pytest.approx(GAIN, abs=0.06)
    assert gain[~low].mean() == pytest.approx(0, abs=0.04)
    naive = log.effective[known & log.asked].mean() - log.effective[known & ~log.asked].mean()
    assert naive - gain.mean() > 0.05
    assert model.simulated


def test_large_pages_are_chosen_if_their_candidates_cost_nothing(log: UpliftLog) -> None:
    free = train_uplift(log, UpliftConfig(candidate_cost=0.0))
    assert {plan.size for plan in free.plans} == {40}
    dear = train_uplift(log, UpliftConfig(candidate_cost=1.0))
    assert dear.plans[0].size < 40
    drops = [plan.drop for plan in dear.plans]
    assert drops == sorted(drops, reverse=True)


def test_the_same_log_and_seed_make_the_same_model(log: UpliftLog, tmp_path: Path) -> None:
    log.save(tmp_path / "log.npz")
    read = UpliftLog.load(tmp_path / "log.npz")
    assert read.names == FEATURES
    assert train_uplift(read, seed=1) == train_uplift(log, seed=1)


def test_a_log_without_random_decisions_is_rejected(log: UpliftLog) -> None:
    for wrong in (
        replace(log, session=np.zeros_like(log.session)),
        replace(log, asked=np.zeros_like(log.asked)),
        replace(log, probability=np.ones_like(log.probability)),
        replace(log, x=np.full_like(log.x, np.nan)),
    ):
        with pytest.raises(ValueError, match="sessions that asked at random"):
            train_uplift(wrong)
