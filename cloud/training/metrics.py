"""How well scores order rows, and how far they lie from the rates that were seen.

Every function takes labels [R], 0 or 1 and NaN for unknown, and scores [R], most of them also the group [R] of each row: the
user, or the list that it was shown in. Rows with an unknown label take no part, and the order of the rows never matters. The
result is None where the rows do not say: no known label, one label only where two are compared, or, for the three metrics of
probabilities, a score outside 0..1.

`gauc` and `ndcg` take the scores of a group for one ordering, made at one moment. Where each row was scored at its own, after
the feedback on the group's earlier rows, they count against the model that learns from it: within a group, a 1 that was seen is
one fewer to come. Even the best score there can be may then have a `gauc` below one half, lowest in short groups. `auc` and the
metrics of probabilities are free of this.

Errors::

    MetricError                arrays of different lengths, a label that is none, a score that is no finite number
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
    "calibration_error",
    "gauc",
    "log_loss",
    "ndcg",
    "observed_ratio",
    "over_seeds",
    "ranking_metrics",
]

METRICS = ("auc", "gauc", "ndcg", "logloss", "ece", "predicted_over_observed")
"""What `ranking_metrics` gives, in the order of a table."""
SPREAD = ("auc", "gauc", "ndcg", "logloss")
"""Those that models are compared by, and so reported with their spread over seeds."""
NDCG_AT = 10
"""Places that count; the usual cut."""
CALIBRATION_BINS = 15
"""As in Guo et al. 2017."""

Floats = NDArray[np.floating[Any]]
Groups = NDArray[np.integer[Any]]
Double = NDArray[np.float64]


class MetricError(ValueError):
    """Arrays of different lengths, a label that is none, or a score that is no finite number."""


def auc(labels: Floats, scores: Floats) -> float | None:
    """Probability that a row with label 1 is scored above one with label 0; a tie counts half. Raises `MetricError`."""
    y, p, _ = _known(labels, scores)
    return float(sklearn.metrics.roc_auc_score(y, p)) if 0 < y.sum() < len(y) else None


def gauc(labels: Floats, scores: Floats, group: Groups) -> float | None:
    """AUC within each group, as a mean weighted by impressions: by the group's rows with a known label.

    The variant of DIN (Zhou et al., KDD 2018, section 6.3), with a user as the group. Groups with one label only have no AUC
    and no weight. Not weighted by clicks, which is the other variant in use. Raises `MetricError`.
    """
    y, p, group = _known(labels, scores, group)
    if not y.any():
        return None
    order, group, tie, place = _sorted(group, p)
    y = y[order]
    size, ones = np.bincount(group), np.bincount(group, y)
    pairs = ones * (size - ones)
    # the Mann-Whitney statistic: ranks of the ones, less what they would be were the ones alone
    won = np.bincount(group, y * (_tie_mean(tie, place) + 1)) - ones * (ones + 1) / 2
    both = pairs > 0
    return float(np.average(won[both] / pairs[both], weights=size[both])) if both.any() else None


def ndcg(labels: Floats, scores: Floats, group: Groups, at: int = NDCG_AT) -> float | None:
    """Mean nDCG@`at` over lists, one list per group, each list with the same weight.

    Linear gain and log2 discount (Järvelin and Kekäläinen 2002; as sklearn, ir_measures and torchmetrics), not the exponential
    gain 2^label - 1 of allRank and LibRerank; with labels 0 and 1 the two are one, and only here may a label be a higher grade.
    Rows of equal score share the mean gain of their places (McSherry and Najork 2008; as sklearn). Lists with nothing relevant
    are left out, where ir_measures counts them as 0; a list with nothing but relevant rows counts as 1, also a list of one row.
    Raises `MetricError`.
    """
    if at < 1:
        raise MetricError(f"Expected at least one place that counts, got {at} - at `at`")
    y, p, group = _known(labels, scores, group, graded=True)
    if not y.any():
        return None
    gained, ideal = _dcg(y, p, group, at), _dcg(y, y, group, at)
    relevant = ideal > 0
    return float(np.mean(gained[relevant] / ideal[relevant]))


def log_loss(labels: Floats, scores: Floats) -> float | None:
    """Mean negative log-likelihood in nats. A score of exactly 0 or 1 that is wrong costs 36, not infinity.

    Raises `MetricError`.
    """
    y, p, _ = _known(labels, scores)
    return float(sklearn.metrics.log_loss(y, p, labels=[0, 1])) if _probabilities(p) else None


def calibration_error(labels: Floats, scores: Floats, bins: int = CALIBRATION_BINS) -> float | None:
    """Expected calibration error: mean distance between the mean score and the rate of ones over bins, weighted by rows.

    Naeini et al. 2015 and Guo et al. 2017 (15 bins), with bins of equal count (Nguyen and O'Connor 2015) in place of equal
    width, which would hold nearly every row of a rare action in its first bin. Rows of equal score stay in one bin. Not
    corrected for the noise of the rates, so that perfect scores have an error above 0. Raises `MetricError`.
    """
    if bins < 1:
        raise MetricError(f"Expected at least one bin, got {bins} - at `bins`")
    y, p, _ = _known(labels, scores)
    if not _probabilities(p):
        return None
    each = np.searchsorted(np.sort(p), p) * bins // len(p)
    return float(np.abs(np.bincount(each, p - y)).sum() / len(p))


def observed_ratio(labels: Floats, scores: Floats) -> float | None:
    """Predicted over observed: mean score / rate of ones. 1 is right on the whole, 2 promises twice too much.

    None also where no label is 1. Raises `MetricError`.
    """
    y, p, _ = _known(labels, scores)
    return float(p.mean() / y.mean()) if _probabilities(p) and y.any() else None


def ranking_metrics(labels: Floats, scores: Floats, user: Groups, list: Groups) -> dict[str, float | None]:
    """All `METRICS` of one model and task; `gauc` is by `user`, `ndcg` by `list`, all arrays are [R]. Raises `MetricError`."""
    return {
        "auc": auc(labels, scores),
        "gauc": gauc(labels, scores, user),
        "ndcg": ndcg(labels, scores, list),
        "logloss": log_loss(labels, scores),
        "ece": calibration_error(labels, scores),
        "predicted_over_observed": observed_ratio(labels, scores),
    }


def over_seeds(seeds: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each of `METRICS` over seeds and, of `SPREAD`, the standard deviation (n - 1) as `<metric>_std`.

    A metric that one seed lacks is None, as is the spread of a single seed. Raises `MetricError` without a seed.
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
    """The rows with a known label."""
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


def _probabilities(p: Double) -> bool:
    return len(p) > 0 and bool(p.min() >= 0 and p.max() <= 1)


def _sorted(group: Groups, key: Double) -> tuple[Groups, Groups, Groups, Groups]:
    """Rows (at least one) by group, then by key, lowest first.

    The order, and in it each row's number of group, number of tie (a run of equal keys in a group) and place in its group.
    """
    order = np.lexsort((key, group))
    group, key = group[order], key[order]
    starts_group = np.append(True, group[1:] != group[:-1])
    starts_tie = starts_group | np.append(True, key[1:] != key[:-1])
    number = np.cumsum(starts_group) - 1
    return order, number, np.cumsum(starts_tie) - 1, np.arange(len(order)) - np.flatnonzero(starts_group)[number]


def _tie_mean(tie: Groups, values: NDArray[Any]) -> Double:
    """Each value replaced by the mean of its tie."""
    mean: Double = np.bincount(tie, values) / np.bincount(tie)
    return mean[tie]


def _dcg(gain: Double, score: Double, group: Groups, at: int) -> Double:
    """Discounted gain of each group's first `at` places, groups in ascending order."""
    order, group, tie, place = _sorted(group, -score)
    discount = np.where(place < at, 1 / np.log2(place + 2), 0)
    # numpy's stub says integers, with weights too
    return np.asarray(np.bincount(group, discount * _tie_mean(tie, gain[order])), np.float64)
