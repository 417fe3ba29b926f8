import numpy as np
import pytest

from pocketrank.cloud.training.bootstrap import SCORE_BINS, ResampledMetrics, drawn_users
from pocketrank.cloud.training.metrics import SPREAD, ranking_metrics

USERS = 40


def rows(number: int, scores: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Labels, scores (of so many different values), users and lists (two of each user); some labels are unknown."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, USERS, number)
    labels = (rng.random(number) < 0.1 + 0.5 * user / USERS).astype(np.float32)
    labels[rng.random(number) < 0.1] = np.nan
    values = np.clip(rng.random(number) * 0.7 + 0.2 * np.nan_to_num(labels), 0.01, 0.99)
    return labels, np.round(values * scores) / scores, user, 2 * user + rng.integers(0, 2, number)


def resampled(labels: np.ndarray, scores: np.ndarray, user: np.ndarray, lists: np.ndarray) -> ResampledMetrics:
    return ResampledMetrics(labels, scores, user, lists, np.arange(2 * USERS) // 2, USERS)


def repeated(drawn: np.ndarray, *columns: np.ndarray) -> list[float | None]:
    """Metrics of rows that are copied as often as their user was drawn; each copy of a user is one user with its own lists."""
    labels, scores, user, lists = columns
    times = drawn[user].astype(int)
    at = np.repeat(np.arange(len(user)), times)
    copy = np.concatenate([np.arange(n) for n in times])
    metrics = ranking_metrics(labels[at], scores[at], user[at] + USERS * copy, lists[at] + 2 * USERS * copy)
    return [metrics[name] for name in SPREAD]


@pytest.mark.parametrize("scores", [7, 1000])
def test_a_resample_has_the_metrics_of_its_copied_rows(scores: int) -> None:
    columns = rows(400, scores)
    metrics = resampled(*columns)
    chunks = list(drawn_users(USERS, 120, seed=1))
    assert [chunk.shape[1] for chunk in chunks] == [1, 100, 20]
    for drawn in chunks:
        assert (drawn.sum(axis=0) == USERS).all()
        expected = np.array([repeated(each, *columns) for each in drawn.T]).T
        np.testing.assert_allclose(metrics.of(drawn), expected, rtol=1e-12)


def test_more_scores_than_bins_are_exact_for_all_users_and_near_for_a_resample() -> None:
    columns = rows(6000, 1_000_000)
    assert len(np.unique(columns[1])) > 3 * SCORE_BINS
    metrics = resampled(*columns)
    every, some = list(drawn_users(USERS, 20, seed=2))
    np.testing.assert_allclose(metrics.of(every)[:, 0], repeated(every[:, 0], *columns), rtol=1e-12)
    got, expected = metrics.of(some), np.array([repeated(each, *columns) for each in some.T]).T
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert expected[0].std() > 2e-3, "the resamples differ much more than the bins' error"


def test_what_a_resample_does_not_define_is_nan() -> None:
    labels, scores, user, lists = rows(400, 100)
    labels[user > 0] = 0
    only_others = np.ones((USERS, 1))
    only_others[0] = 0
    auc, gauc, ndcg, loss = resampled(labels, scores, user, lists).of(only_others)[:, 0]
    assert np.isnan([auc, gauc, ndcg]).all()
    assert loss > 0
    nobody = resampled(np.full_like(labels, np.nan), scores, user, lists).of(np.ones((USERS, 1)))
    assert np.isnan(nobody).all()
