"""Metrics of resampled users: `SPREAD` of `pocketrank.cloud.training.metrics` when each user counts as often as it was drawn.

A user's rows stay together, because rows of one user depend on each other: the bootstrap of clusters (Davison and Hinkley 1997,
section 3.8; Field and Welsh 2007). Scores of two models that are resampled with the same users are paired.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pocketrank.cloud.training.metrics import SPREAD, Double, Floats, Groups, group_auc, group_ndcg, row_loss

__all__ = ["ResampledMetrics", "drawn_users"]

SCORE_BINS = 1000
"""Bins of scores. Up to this many different scores the AUC of a resample is exact; see `_Auc`."""
_CHUNK = 100
"""Resamples at once. More are not faster, and take more memory."""


def drawn_users(users: int, resamples: int, seed: int) -> Iterator[Double]:
    """Yield how often each user was drawn, [users, chunk]: first 1 for all users, chunk 1, and then the resamples in chunks."""
    yield np.ones((users, 1))
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0xB007])))
    for start in range(0, resamples, _CHUNK):
        counts = rng.multinomial(users, np.full(users, 1 / users), size=min(_CHUNK, resamples - start))
        yield np.ascontiguousarray(counts.T.astype(np.float64))


class ResampledMetrics:
    """Metrics of one model and task under any weights of the users.

    `labels` and `scores` are [R] as in `metrics`, `user` [R] is 0 to `users` - 1, `list` [R] is 0 to L - 1, and `list_user` [L]
    is the user of each list. Raises `MetricError`.
    """

    def __init__(self, labels: Floats, scores: Floats, user: Groups, list: Groups, list_user: Groups, users: int) -> None:
        self._auc = _Auc(labels, scores, user, users)
        # The other metrics are ratios of two sums over users, here of each user: [3, users].
        of_user, areas, rows = group_auc(labels, scores, user)
        lists, gains = group_ndcg(labels, scores, list)
        of_list = list_user[lists]
        losses = row_loss(labels, scores)
        known = ~np.isnan(losses)
        self._parts = np.stack(
            [
                np.bincount(of_user, rows * areas, users),
                np.bincount(of_list, gains, users),
                np.bincount(user[known], losses[known], users),
            ]
        )
        self._wholes = np.stack(
            [np.bincount(of_user, rows, users), np.bincount(of_list, None, users), np.bincount(user[known], None, users)]
        )

    def of(self, drawn: Double) -> Double:
        """Return `SPREAD` [metrics, resamples] for `drawn` [users, resamples]; NaN where a resample does not define one."""
        ratios = dict(zip(("gauc", "ndcg", "logloss"), _ratio(self._parts @ drawn, self._wholes @ drawn), strict=True))
        return np.stack([self._auc.of(drawn) if name == "auc" else ratios[name] for name in SPREAD])


class _Auc:
    """AUC under any weights of the users.

    Rows are put into bins of equal count in the order of their scores, rows of equal score into the same. A pair of rows from
    two bins is won as it is in the data. Of the pairs within one bin, the share that is won is that of all users: exact when
    every user counts once, or when a bin holds one score only.
    """

    def __init__(self, labels: Floats, scores: Floats, user: Groups, users: int) -> None:
        known = np.flatnonzero(~np.isnan(labels))
        order = known[np.argsort(scores[known])]
        one, sorted_scores = labels[order] == 1, scores[order]
        tie = np.cumsum(np.append(True, sorted_scores[1:] != sorted_scores[:-1])[: len(order)]) - 1
        ties = np.bincount(tie)
        bins = min(len(ties), SCORE_BINS)
        few = bins == len(ties)
        row_bin = tie if few else ((np.cumsum(ties) - ties) * bins // len(order))[tie]
        self._ones, self._zeros = (
            csr_array((np.ones(mask.sum()), (row_bin[mask], user[order[mask]])), shape=(bins, users)) for mask in (one, ~one)
        )
        # Zeros that each row beats: those of a lower score, and half of those of its own.
        tie_zeros = np.bincount(tie, ~one)
        beaten = (np.cumsum(tie_zeros) - tie_zeros / 2)[tie]
        zeros, ones = np.bincount(row_bin, ~one, bins), np.bincount(row_bin, one, bins)
        before = np.cumsum(zeros) - zeros
        won = np.bincount(row_bin[one], (beaten - before[row_bin])[one], bins)
        self._won_within = _ratio(won, ones * zeros, 0.5)

    def of(self, drawn: Double) -> Double:
        """Return the AUC [resamples] for `drawn` [users, resamples]; NaN where a resample does not define it."""
        ones, zeros = self._ones @ drawn, self._zeros @ drawn
        below = np.cumsum(zeros, axis=0) - zeros
        won = (ones * (below + self._won_within[:, None] * zeros)).sum(axis=0)
        return _ratio(won, ones.sum(axis=0) * zeros.sum(axis=0))


def _ratio(part: NDArray[Any], whole: NDArray[Any], otherwise: float = np.nan) -> Double:
    """Return `part` / `whole`, and `otherwise` where `whole` is not positive."""
    out = np.full(np.shape(part), otherwise)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
