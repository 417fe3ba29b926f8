"""Training of the paging model: the gain of asking for a page now, from sessions that asked at random (`UpliftLog`).

Two effects are estimated. Both are effects on the effective view of single impressions, which is far more informative per
session than the session's length:

- *asking*: y - m(x) ≈ (asked - e) gain(x). e is the known probability of asking, m a boosted regression of y that was not
  fitted on the session, and the gain is piecewise linear: the R-learner (Nie and Wager 2021, arXiv 1712.04912). Because asking
  is random, the gain is not confounded with what makes a session good.
- *depth*: how the i-th impression of a page of k differs from the first of any page: y ≈ session + a ln k + b ln((k - i) / k)
  + c i, within sessions.

From the second effect and the chance that a session continues follows, for pages of k of which each is asked for after i
impressions of the last, how much they gain per impression and what they cost (`PagePlan`). Only plans that are the best at some
price are kept.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from pocketrank.cloud.files import replacing
from pocketrank.device.contract import PagePlan, PagingModel, PagingTerm

__all__ = ["UpliftConfig", "UpliftLog", "train_uplift"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class UpliftConfig:
    """Costs of asking, and the training of its gain."""

    request_cost: float = 0.5
    """Effective views that a page must gain at price 1."""
    candidate_cost: float = 0.01
    """Effective views that each candidate of a page must gain, at any price: under load compute becomes expensive, transfer
    does not. Both costs are choices of ours; with them a page of 50 costs as much to transfer as to compute at price 1."""
    sizes: tuple[int, ...] = (6, 9, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100)
    """Page sizes to choose from, up to the largest that was logged."""
    consumed: tuple[int, ...] = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 60)
    """Numbers of impressions of a page, before the next page is asked for, to choose from; at most the page's size."""
    folds: int = 5
    """Folds of sessions in the cross-fitting of m."""
    ridge: tuple[float, ...] = (30.0, 100.0, 300.0, 1000.0)
    """Penalties on the weights to choose from; the weights are per standard deviation of their terms."""
    bends: tuple[str, ...] = ("best", "left")
    """Features in which the gain is piecewise linear: it is near zero until few of the candidates left are worth showing."""
    knots: tuple[float, ...] = (0.05, 0.15, 0.3, 0.5)
    """Quantiles of these features at which the gain may bend."""


@dataclass(frozen=True)
class UpliftLog:
    """Impressions of sessions that asked at random, and the decision before each impression. n rows, F features."""

    names: tuple[str, ...]
    """[F] names of the features of the state before the decision"""
    x: Floats
    """[n, F] features; a row is NaN where the values of the candidates left were not known"""
    session: NDArray[np.int64]
    """[n] number of the session"""
    asked: NDArray[np.bool_]
    """[n] whether the session asked for a page before the impression"""
    probability: Floats
    """[n] probability of asking; 1 where asking was forced"""
    size: NDArray[np.int64]
    """[n] size of the page that the impression is from"""
    depth: NDArray[np.int64]
    """[n] impressions of that page before this one"""
    effective: NDArray[np.bool_]
    """[n] whether the view was effective"""
    simulated: bool
    """Whether the sessions are of a simulated world and not of real users."""

    def save(self, file: Path) -> None:
        """Write the log to `file` as NPZ, atomically. Raises OSError."""
        with replacing(file) as part, part.open("wb") as out:  # numpy appends `.npz` to a path of another name
            np.savez_compressed(out, **asdict(self))

    @classmethod
    def load(cls, file: Path) -> UpliftLog:
        """Read a log that `save` wrote. Raises OSError, and ValueError for any other file."""
        with np.load(file, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
        return cls(**held | {"names": tuple(held["names"].tolist()), "simulated": bool(held["simulated"])})


def train_uplift(log: UpliftLog, config: UpliftConfig = UpliftConfig(), *, seed: int = 0) -> PagingModel:
    """Train the model by which a device decides when to ask, and for how many candidates.

    Raises ValueError for a log without random decisions, or with fewer sessions than `config.folds`.
    """
    bias, terms = _gain(log, config, seed)
    return PagingModel(
        bias=bias,
        terms=terms,
        plans=_plans(log, config),
        simulated=log.simulated,
    )


def _gain(log: UpliftLog, config: UpliftConfig, seed: int) -> tuple[float, tuple[PagingTerm, ...]]:
    """Estimate the gain of asking at the next impression. Returns bias and terms."""
    rows = np.isfinite(log.x).all(1) & (log.probability > 0) & (log.probability < 1)
    x, y, session = log.x[rows], log.effective[rows].astype(np.float64), log.session[rows]
    if len(np.unique(session)) < config.folds or not 0 < log.asked[rows].sum() < rows.sum():
        raise ValueError(f"Expected at least {config.folds} sessions that asked at random, got {rows.sum()} decisions")
    # m(x), cross-fitted by session (Nie and Wager 2021, section 2).
    boosted = HistGradientBoostingRegressor(max_depth=4, learning_rate=0.05, max_iter=100, random_state=seed)
    m = cross_val_predict(boosted, x, y, groups=session, cv=GroupKFold(config.folds))
    residual = log.asked[rows] - log.probability[rows]
    bends = [log.names.index(name) for name in config.bends if name in log.names]
    knots = [(i, float(knot)) for i in bends for knot in np.unique(np.quantile(x[:, i], config.knots))]
    columns = np.column_stack([x, *(np.maximum(knot - x[:, i], 0) for i, knot in knots)])
    # Least squares of y - m on (asked - e) gain(x), as a regression of their ratio weighted by (asked - e)^2.
    scaler = StandardScaler().fit(columns)
    fitted = RidgeCV(config.ridge).fit(scaler.transform(columns), (y - m) / residual, sample_weight=residual**2)
    weights = fitted.coef_ / scaler.scale_
    of = [*((i, None) for i in range(x.shape[1])), *knots]
    terms = [PagingTerm(feature=log.names[i], weight=float(w), knot=k) for w, (i, k) in zip(weights, of, strict=True) if w]
    return float(fitted.intercept_ - weights @ scaler.mean_), tuple(terms)


def _plans(log: UpliftLog, config: UpliftConfig) -> tuple[PagePlan, ...]:
    """Return the plans that are the best at some price, from the lowest price to the highest."""
    _, session, counts = np.unique(log.session, return_inverse=True, return_counts=True)
    position = np.arange(len(session)) - np.repeat(np.cumsum(counts) - counts, counts)
    stays = 1 - 1 / counts.mean()  # chance of another impression, of sessions with a geometric length
    size, depth = log.size.astype(np.float64), log.depth.astype(np.float64)
    columns = np.column_stack([*_depth(size, depth), np.log1p(position), log.effective])
    # The effect of depth: the mean of each session is subtracted, so that sessions are not compared with each other.
    within = columns - (np.add.reduceat(columns, np.cumsum(counts) - counts) / counts[:, None])[session]
    fitted = LinearRegression(fit_intercept=False).fit(within[:, :-1], within[:, -1])
    effect = fitted.coef_[:3]
    first = log.depth == 0
    usual = effect[0] * np.log(size[first]).mean()  # the pages that the gain of asking was measured with
    plans = []
    for k in (k for k in config.sizes if k <= log.size.max()):
        shown = np.arange(k)
        gain = np.stack(_depth(np.full(k, float(k)), shown.astype(np.float64)), 1) @ effect - usual
        discount = stays**shown
        # The whole cost of a page falls on its first impression: this is the share of it per discounted impression.
        share = 1 / np.cumsum(discount)
        level = (np.cumsum(discount * gain) - config.candidate_cost * k) * share
        plans += [
            PagePlan(size=k, consume=i, level=float(level[i - 1]), drop=float(config.request_cost * share[i - 1]))
            for i in config.consumed
            if i <= k
        ]
    return _best(plans)


def _depth(size: Floats, depth: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the columns of the depth effect: candidates at first, share of them left, and impressions since."""
    return np.log(size), np.log((size - depth) / size), depth


def _best(plans: list[PagePlan]) -> tuple[PagePlan, ...]:
    """Return the plans on the upper envelope of level - price * drop over prices from 0.

    A plan with smaller pages than the plan of a lower price is left out.
    """
    kept: list[PagePlan] = []
    plan = max(plans, key=lambda plan: (plan.level, -plan.drop))
    while True:
        kept.append(plan)
        later = [p for p in plans if p.drop < plan.drop and p.size >= plan.size]
        if not later:
            return tuple(kept)
        plan = min(later, key=lambda p: ((plan.level - p.level) / (plan.drop - p.drop), p.drop))
