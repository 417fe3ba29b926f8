import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import ndcg_score, roc_auc_score

from pocketrank.cloud.training.metrics import (
    METRICS,
    MetricError,
    auc,
    calibration_error,
    gauc,
    log_loss,
    ndcg,
    observed_ratio,
    over_seeds,
    ranking_metrics,
)

NAN = float("nan")
ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, NAN]), st.integers(0, 8).map(lambda i: i / 8), st.integers(-2, 2), st.integers(0, 3)),
    max_size=40,
)
"""Label, score (few values, so that many are tied), user and list."""


def arrays(rows: list[tuple[float, float, int, int]]) -> tuple[np.ndarray, ...]:
    kinds = (np.float32, np.float64, np.int64, np.int64)
    return tuple(np.array([row[i] for row in rows], kind) for i, kind in enumerate(kinds))


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def f64(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_gauc_weighs_users_by_their_impressions() -> None:
    """User 7: one of two pairs in order, 3 rows. User -1: the pair in order, 2 rows. User 3: no zero, no weight."""
    labels = f32(1, 0, 0, 1, 0, 1, 1)
    scores = f64(0.5, 0.9, 0.1, 0.8, 0.2, 0.1, 0.2)
    users = i64(7, 7, 7, -1, -1, 3, 3)
    assert gauc(labels, scores, users) == pytest.approx((3 * 0.5 + 2 * 1.0) / 5)


def test_a_tie_within_a_user_counts_half() -> None:
    assert gauc(f32(1, 0, 0), f64(0.5, 0.5, 0.1), i64(0, 0, 0)) == pytest.approx(0.75)


@given(ROWS)
def test_gauc_is_the_weighted_mean_of_single_aucs(rows: list[tuple[float, float, int, int]]) -> None:
    labels, scores, users, _ = arrays(rows)
    known = ~np.isnan(labels)
    parts = [known & (users == user) for user in np.unique(users)]
    parts = [part for part in parts if 0 < labels[part].sum() < part.sum()]
    expected = [roc_auc_score(labels[part], scores[part]) for part in parts]
    got = gauc(labels, scores, users)
    if not parts:
        assert got is None
    else:
        assert got == pytest.approx(np.average(expected, weights=[part.sum() for part in parts]))


@given(ROWS)
def test_gauc_of_one_group_is_auc(rows: list[tuple[float, float, int, int]]) -> None:
    labels, scores, users, _ = arrays(rows)
    assert gauc(labels, scores, np.zeros_like(users)) == pytest.approx(auc(labels, scores))


def test_gauc_is_biased_against_the_best_score_with_feedback() -> None:
    """As the module says: each user has a rate, each row is scored by its expectation given the user's earlier rows."""
    rng = np.random.default_rng(5)
    labels = (rng.random((4000, 10)) < rng.beta(1, 3, (4000, 1))).astype(np.float32)
    following = (1 + labels.cumsum(axis=1) - labels) / (4 + np.arange(10))
    users = np.repeat(np.arange(4000), 10)
    got, blind = (ranking_metrics(labels.ravel(), p.ravel(), users, users) for p in (following, np.full((4000, 10), 0.25)))
    assert (blind["auc"], blind["gauc"]) == pytest.approx((0.5, 0.5))
    assert got["auc"] is not None
    assert got["gauc"] is not None
    assert got["auc"] > 0.65
    assert got["gauc"] < 0.3


GRADES = f32(0, 3, 1, 0, 2, 0, 1, 0, 3, 0, 2, 0)
FALLING = np.linspace(1, 0, len(GRADES))


def test_ndcg_has_linear_gain() -> None:
    """Pinned with grades, for only they tell linear from exponential gain, which gives 0.56968 here."""
    assert ndcg(GRADES, FALLING, np.zeros(len(GRADES), np.int64)) == pytest.approx(0.58727, abs=1e-5)
    assert ndcg_score([GRADES], [FALLING], k=10) == pytest.approx(0.58727, abs=1e-5)
    assert ndcg(2**GRADES - 1, FALLING, np.zeros(len(GRADES), np.int64)) == pytest.approx(0.56968, abs=1e-5)


def test_ndcg_leaves_out_lists_without_a_relevant_row() -> None:
    """List 5: the one relevant row in second place. List 2: nothing relevant. List 9: nothing else, a row alone."""
    labels, scores = f32(0, 1, 0, 0, 0, 1), f64(0.9, 0.5, 0.1, 0.3, 0.2, 0.1)
    assert ndcg(labels, scores, i64(5, 5, 5, 2, 2, 9)) == pytest.approx((1 / np.log2(3) + 1) / 2)


def test_rows_of_equal_score_share_their_places() -> None:
    expected = (1 + 1 / np.log2(3)) / 2
    for labels in (f32(1, 0), f32(0, 1)):
        assert ndcg(labels, f64(0.5, 0.5), i64(0, 0)) == pytest.approx(expected)
    assert ndcg(f32(1, 0), f64(0.5, 0.5), i64(0, 0), at=1) == pytest.approx(0.5)


@given(ROWS, st.integers(1, 12))
def test_ndcg_is_the_mean_of_single_lists(rows: list[tuple[float, float, int, int]], at: int) -> None:
    labels, scores, _, lists = arrays(rows)
    expected = []
    for each in np.unique(lists):
        part = ~np.isnan(labels) & (lists == each)
        if labels[part].any():
            # sklearn refuses a list of one row
            expected.append(ndcg_score([labels[part]], [scores[part]], k=at) if part.sum() > 1 else 1.0)
    got = ndcg(labels, scores, lists, at)
    if not expected:
        assert got is None
    else:
        assert got == pytest.approx(np.mean(expected))


def test_log_loss_is_finite_for_a_wrong_score_of_zero_or_one() -> None:
    assert log_loss(f32(1, 0, NAN), f64(0.5, 0.25, 0.9)) == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 2)
    assert log_loss(f32(0, 1), f64(1, 0)) == pytest.approx(36.04, abs=0.01)
    assert log_loss(f32(0, 0), f64(0.5, 0.5)) == pytest.approx(np.log(2))


def test_calibration_error_compares_rates_in_bins_of_equal_count() -> None:
    labels, scores = f32(0, 0, 1, 0, 1, 1), f64(0.1, 0.3, 0.4, 0.4, 0.8, 1)
    # means .2 .4 .9 against rates 0 .5 1
    assert calibration_error(labels, scores, bins=3) == pytest.approx((0.2 + 0.1 + 0.1) / 3)
    assert calibration_error(labels, scores, bins=1) == pytest.approx(0.0)
    # as many bins as rows: the mean distance of each score from its label, but that the tie shares a bin
    assert calibration_error(labels, scores, bins=6) == pytest.approx((0.1 + 0.3 + 0.2 + 0.2 + 0) / 6)


def test_scores_drawn_from_their_own_rates_are_calibrated_and_others_are_not() -> None:
    rng = np.random.default_rng(5)
    scores = rng.beta(1, 20, 60_000)
    labels = (rng.random(60_000) < scores).astype(np.float32)
    assert calibration_error(labels, scores) == pytest.approx(0, abs=4e-3)
    assert observed_ratio(labels, scores) == pytest.approx(1, abs=0.05)
    half = scores / 2
    assert calibration_error(labels, half) == pytest.approx(scores.mean() / 2, rel=0.05)
    assert observed_ratio(labels, half) == pytest.approx(0.5, abs=0.03)


@given(ROWS, st.randoms(use_true_random=False))
def test_no_metric_depends_on_the_order_of_rows_or_on_unknown_labels(
    rows: list[tuple[float, float, int, int]], random: "np.random.Generator"
) -> None:
    metrics = ranking_metrics(*arrays(rows))
    assert tuple(metrics) == METRICS
    known = [row for row in rows if not np.isnan(row[0])]
    random.shuffle(known)  # type: ignore[arg-type]
    assert ranking_metrics(*arrays(known)) == pytest.approx(metrics)
    if {row[0] for row in known} == {0.0, 1.0}:
        labels, scores, _, _ = arrays(known)
        assert metrics["auc"] == pytest.approx(roc_auc_score(labels, scores))
        assert metrics["logloss"] == pytest.approx(sklearn_log_loss(labels, scores))


def test_an_undefined_metric_is_none() -> None:
    one = np.zeros(2, np.int64)
    assert set(ranking_metrics(f32(NAN, NAN), f64(0.1, 0.2), one, one).values()) == {None}
    assert set(ranking_metrics(f32(), f64(), i64(), i64()).values()) == {None}
    zeros = ranking_metrics(f32(0, 0), f64(0.25, 0.25), one, one)
    assert [name for name, value in zeros.items() if value is None] == ["auc", "gauc", "ndcg", "predicted_over_observed"]
    assert zeros["ece"] == pytest.approx(0.25)
    ones = ranking_metrics(f32(1, 1), f64(0.25, 0.25), one, one)
    assert [name for name, value in ones.items() if value is None] == ["auc", "gauc"]
    # each user has one label only, though both occur
    assert gauc(f32(1, 0), f64(0.9, 0.1), i64(0, 1)) is None


def test_scores_outside_of_probabilities_have_ranking_metrics_only() -> None:
    one = np.zeros(3, np.int64)
    metrics = ranking_metrics(f32(1, 0, 1), f64(7, -2, 0.5), one, one)
    assert metrics == {"auc": 1, "gauc": 1, "ndcg": 1, "logloss": None, "ece": None, "predicted_over_observed": None}


@pytest.mark.parametrize(
    ("labels", "scores", "group", "message"),
    [
        (f32(1, 0), f64(0.5), i64(0, 0), r"scores \(1,\)"),
        (f32(1, 0), f64(0.5, 0.5), i64(0), r"groups \(1,\)"),
        (np.zeros((2, 1), np.float32), np.zeros((2, 1)), i64(0, 0), r"labels \(2, 1\)"),
        (f32(NAN, 1, 2), f64(0.1, 0.1, 0.2), i64(0, 0, 0), r"labels 0 and 1, .* got 2.0 - at row 2"),
        (f32(1, float("inf")), f64(0.1, 0.2), i64(0, 0), "got inf - at row 1"),
        (f32(NAN, 0, 1), f64(NAN, 0.1, NAN), i64(0, 0, 0), "finite scores, got nan - at row 2"),
        (f32(0, 1), f64(float("inf"), 0.1), i64(0, 0), "finite scores, got inf - at row 0"),
    ],
)
def test_invalid_arrays_are_rejected(labels: np.ndarray, scores: np.ndarray, group: np.ndarray, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        ranking_metrics(labels, scores, group, group)


def test_invalid_parameters_are_rejected() -> None:
    with pytest.raises(MetricError, match="at least one place"):
        ndcg(f32(1), f64(0.5), i64(0), at=0)
    with pytest.raises(MetricError, match="grades from 0"):
        ndcg(f32(-1, 3), f64(0.5, 0.2), i64(0, 0))
    with pytest.raises(MetricError, match="at least one bin"):
        calibration_error(f32(1), f64(0.5), bins=0)


def test_over_seeds_are_means_and_spreads() -> None:
    first: dict[str, float | None] = dict(zip(METRICS, (0.7, 0.6, 0.5, 0.4, 0.01, 1.1), strict=True))
    second: dict[str, float | None] = dict(zip(METRICS, (0.8, 0.6, 0.7, 0.2, 0.03, 0.9), strict=True))
    assert over_seeds([first, second]) == pytest.approx(
        {
            "auc": 0.75,
            "auc_std": np.std([0.7, 0.8], ddof=1),
            "gauc": 0.6,
            "gauc_std": 0,
            "ndcg": 0.6,
            "ndcg_std": np.std([0.5, 0.7], ddof=1),
            "logloss": 0.3,
            "logloss_std": np.std([0.4, 0.2], ddof=1),
            "ece": 0.02,
            "predicted_over_observed": 1.0,
        }
    )
    alone = over_seeds([first])
    assert alone == {**first, "auc_std": None, "gauc_std": None, "ndcg_std": None, "logloss_std": None}
    partly = over_seeds([first, {**second, "gauc": None}])
    assert (partly["gauc"], partly["gauc_std"]) == (None, None)
    with pytest.raises(MetricError, match="at least one seed"):
        over_seeds([])
