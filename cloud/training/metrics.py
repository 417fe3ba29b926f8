"""Metrics of scores: how well they order rows, and how near they are to the observed rates.

Every function takes labels [R], which are 0, 1 or NaN for unknown, and scores [R]. Some also take the group [R] of each row:
its user, or the list that it was shown in. Rows with an unknown label take no part, and the order of the rows never matters.
The result is None where the rows do not define the metric: no label is known, only one label occurs where two are compared, or
a score is outside 0..1 in one of the three metrics of probabilities.

`gauc` and `ndcg` treat the scores of a group as one ordering that was made at one time. If instead each row was scored at its
own time, with the feedback on the earlier rows of the group, these two are biased against models that learn from feedback:
within a group, each 1 that was already seen leaves one fewer. Even the best possible score may then have a `gauc` below one
half, lowest in short groups. `auc` and the metrics of probabilities do not have this bias.

Errors::

    MetricError                arrays of different lengths, a label that is not 0, 1 or NaN, or a score that is not finite
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
import sklearn.metrics
from numpy.typing import NDArray

__all__ = [
    "METRICS",
    "SPREAD",
    "MetricError",
    "auc",
    "calibration_curve",
    "calibration_error",
    "gauc",
    "group_auc",
    "group_ndcg",
    "log_loss",
    "ndcg",
    "observed_ratio",
    "over_seeds",
    "ranking_metrics",
    "row_loss",
]

METRICS = ("auc", "gauc", "ndcg", "logloss", "ece", "predicted_over_observed")
"""Names in the result of `ranking_metrics`, in the order of a table."""
SPREAD = ("auc", "gauc", "ndcg", "logloss")
"""Metrics by which models are compared; they are reported with their standard deviation over seeds."""
NDCG_AT = 10
"""Places of a list that count."""
CALIBRATION_BINS = 15
"""Number of bins, as in Guo et al. 2017."""

Floats = NDArray[np.floating[Any]]
Groups = NDArray[np.integer[Any]]
Double = NDArray[np.float64]


class MetricError(ValueError):
    """Arrays have different lengths, a label is not 0, 1 or NaN, or a score is not finite."""


def auc(labels: Floats, scores: Floats) -> float | None:
    """Return the probability that a row with label 1 is scored above one with label 0, a tie counting half.

    Raises `MetricError`.
    """
    y, p, _ = _known(labels, scores)
    return float(sklearn.metrics.roc_auc_score(y, p)) if 0 < y.sum() < len(y) else None


def gauc(labels: Floats, scores: Floats, group: Groups) -> float | None:
    """Return the mean of the AUC within each group, weighted by impressions: the group's rows with a known label.

    This is the variant of DIN (Zhou et al., KDD 2018, section 6.3), with a user as the group. The other variant in use weights
    by clicks. Groups with one label only have no AUC and no weight. Raises `MetricError`.
    """
    _, areas, rows = group_auc(labels, scores, group)
    return float(np.average(areas, weights=rows)) if len(areas) else None


def group_auc(labels: Floats, scores: Floats, group: Groups) -> tuple[Groups, Double, Groups]:
    """Return the groups [G] with both labels, ascending, the AUC within each [G], and its rows with a known label [G].

    Raises `MetricError`.
    """
    y, p, group = _known(labels, scores, group)
    if not y.any():
        return group[:0], p[:0], group[:0]
    order, number, tie, place = _sorted(group, p)
    y = y[order]
    size, ones = np.bincount(number), np.bincount(number, y)
    pairs = ones * (size - ones)
    # The Mann-Whitney statistic of each group: the rank sum of its ones, minus the rank sum if there were only ones.
    won = np.bincount(number, y * (_tie_mean(tie, place) + 1)) - ones * (ones + 1) / 2
    both = pairs > 0
    return np.unique(group)[both], won[both] / pairs[both], size[both]


def ndcg(labels: Floats, scores: Floats, group: Groups, at: int = NDCG_AT) -> float | None:
    """Return the mean nDCG@`at` over lists. Each group is a list, and each list has the same weight.

    The gain is linear and the discount log2 (Järvelin and Kekäläinen 2002; as in sklearn, ir_measures and torchmetrics).
    allRank and LibRerank have the exponential gain 2^label - 1, which is the same for labels 0 and 1; in this function alone a
    label may also be a higher grade. Rows of equal score share the mean gain of their places (McSherry and Najork 2008; as in
    sklearn). Lists without a relevant row are left out; ir_measures counts them as 0. A list of relevant rows only counts as 1,
    also if it has one row. Raises `MetricError`.
    """
    _, values = group_ndcg(labels, scores, group, at)
    return float(np.mean(values)) if len(values) else None


def group_ndcg(labels: Floats, scores: Floats, group: Groups, at: int = NDCG_AT) -> tuple[Groups, Double]:
    """Return the groups [G] with a relevant row, ascending, and the nDCG@`at` of each [G], as in `ndcg`.

    Raises `MetricError`.
    """
    if at < 1:
        raise MetricError(f"Expected at least one place, got {at} - at `at`")
    y, p, group = _known(labels, scores, group, graded=True)
    if not y.any():
        return group[:0], p[:0]
    gained, ideal = _dcg(y, p, group, at), _dcg(y, y, group, at)
    relevant = ideal > 0
    return np.unique(group)[relevant], gained[relevant] / ideal[relevant]


def log_loss(labels: Floats, scores: Floats) -> float | None:
    """Return the mean negative log-likelihood in nats. A wrong score of exactly 0 or 1 costs 36, not infinity.

    Raises `MetricError`.
    """
    losses = row_loss(labels, scores)
    known = ~np.isnan(losses)
    return float(losses[known].mean()) if known.any() else None


def row_loss(labels: Floats, scores: Floats) -> Double:
    """Return the negative log-likelihood [R] of each row as in `log_loss`, NaN where it is not defined.

    Raises `MetricError`.
    """
    y, p, _ = _known(labels, scores)
    losses = np.full(labels.shape, np.nan)
    if _probabilities(p):
        losses[~np.isnan(labels)] = -np.log(np.maximum(np.where(y == 1, p, 1 - p), np.finfo(np.float64).eps))
    return losses


def calibration_error(labels: Floats, scores: Floats, bins: int = CALIBRATION_BINS) -> float | None:
    """Return the expected calibration error: the distance of mean score and rate of ones in each bin, weighted by rows.

    After Naeini et al. 2015 and Guo et al. 2017 (15 bins), with bins of equal count (Nguyen and O'Connor 2015): with bins of
    equal width, the first bin would hold nearly every row of a rare action. Rows of equal score are in one bin. The error is
    not corrected for the noise of the rates, so that it is above 0 for perfect scores too. Raises `MetricError`.
    """
    if bins < 1:
        raise MetricError(f"Expected at least one bin, got {bins} - at `bins`")
    y, p, _ = _known(labels, scores)
    if not _probabilities(p):
        return None
    each = _bins(p, bins)
    return float(np.abs(np.bincount(each, p - y)).sum() / len(p))


def calibration_curve(labels: Floats, scores: Floats, bins: int = CALIBRATION_BINS) -> tuple[Double, Double, Groups]:
    """Return the mean score, the rate of ones and the number of rows of each bin of `calibration_error` [b], ascending.

    They are empty where that is None. Raises `MetricError`.
    """
    y, p, _ = _known(labels, scores)
    if not _probabilities(p):
        return p[:0], p[:0], np.zeros(0, np.int64)
    each = np.unique(_bins(p, bins), return_inverse=True)[1]
    rows = np.bincount(each)
    return np.bincount(each, p) / rows, np.bincount(each, y) / rows, rows


def observed_ratio(labels: Floats, scores: Floats) -> float | None:
    """Return predicted over observed: the mean score divided by the rate of ones. Unbiased scores have 1.

    The result is also None where no label is 1. Raises `MetricError`.
    """
    y, p, _ = _known(labels, scores)
    return float(p.mean() / y.mean()) if _probabilities(p) and y.any() else None


def ranking_metrics(labels: Floats, scores: Floats, user: Groups, list: Groups) -> dict[str, float | None]:
    """Return all `METRICS` of one model and task, `gauc` by `user` and `ndcg` by `list`. All arrays are [R].

    Raises `MetricError`.
    """
    return {
        "auc": auc(labels, scores),
        "gauc": gauc(labels, scores, user),
        "ndcg": ndcg(labels, scores, list),
        "logloss": log_loss(labels, scores),
        "ece": calibration_error(labels, scores),
        "predicted_over_observed": observed_ratio(labels, scores),
    }


def over_seeds(seeds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return the mean of `METRICS` over seeds, and of `SPREAD` the standard deviation (n - 1) as `<metric>_std`.

    A metric that is None in one seed is None, as is the deviation of a single seed. Raises `MetricError` without a seed.
    """
    if not seeds:
        raise MetricError("Expected the metrics of at least one seed, got none")
    out: dict[str, float | None] = {}
    for name in METRICS:
        values = [value for seed in seeds if (value := seed[name]) is not None]
        whole = len(values) == len(seeds)
        out[name] = fmean(values) if whole else None
        if name in SPREAD:
            out[f"{name}_std"] = stdev(values) if whole and len(values) > 1 else None
    return out


def _known(
    labels: Floats, scores: Floats, group: Groups | None = None, *, graded: bool = False
) -> tuple[Double, Double, Groups]:
    """Return labels, scores and groups of the rows with a known label. Raises `MetricError`."""
    group = np.zeros(labels.shape, np.int64) if group is None else group
    if labels.ndim != 1 or not labels.shape == scores.shape == group.shape:
        shapes = f"labels {labels.shape}, scores {scores.shape} and groups {group.shape}"
        raise MetricError(f"Expected one label, score and group a row, got {shapes}")
    known = ~np.isnan(labels)
    y, p = labels[known].astype(np.float64), scores[known].astype(np.float64)
    wrong = ~((y >= 0) & np.isfinite(y)) if graded else (y != 0) & (y != 1)
    if wrong.any():
        expected = "grades from 0 on" if graded else "labels 0 and 1"
        raise MetricError(f"Expected {expected}, NaN for unknown, got {y[wrong][0]} - at row {np.flatnonzero(known)[wrong][0]}")
    if not np.isfinite(p).all():
        bad = ~np.isfinite(p)
        raise MetricError(f"Expected finite scores, got {p[bad][0]} - at row {np.flatnonzero(known)[bad][0]}")
    return y, p, group[known]


def _bins(p: Double, bins: int) -> Groups:
    """Return the bin [R] of each score, of equal count. Equal scores are in one bin."""
    return np.searchsorted(np.sort(p), p) * bins // len(p)


def _probabilities(p: Double) -> bool:
    return len(p) > 0 and bool(p.min() >= 0 and p.max() <= 1)


def _sorted(group: Groups, key: Double) -> tuple[Groups, Groups, Groups, Groups]:
    """Sort rows, of which there is at least one, by group and then by key, lowest first.

    Returns the order and, in that order, the number of each row's group, the number of its tie (equal keys in one group) and
    its place in the group.
    """
    order = np.argsort(key)
    order = order[np.argsort(group[order], kind="stable")]  # half the time of np.lexsort
    group, key = group[order], key[order]
    starts_group = np.append(True, group[1:] != group[:-1])
    starts_tie = starts_group | np.append(True, key[1:] != key[:-1])
    number = np.cumsum(starts_group) - 1
    return order, number, np.cumsum(starts_tie) - 1, np.arange(len(order)) - np.flatnonzero(starts_group)[number]


def _tie_mean(tie: Groups, values: NDArray[Any]) -> Double:
    """Replace each value by the mean of its tie."""
    mean: Double = np.bincount(tie, values) / np.bincount(tie)
    return mean[tie]


def _dcg(gain: Double, score: Double, group: Groups, at: int) -> Double:
    """Return the discounted gain of each group's first `at` places, groups in ascending order."""
    order, group, tie, place = _sorted(group, -score)
    discount = np.where(place < at, 1 / np.log2(place + 2), 0)
    # The type stub of numpy says that the result is of integers, also with weights.
    return np.asarray(np.bincount(group, discount * _tie_mean(tie, gain[order])), np.float64)
