"""What asking for a page now wins, learned from sessions that asked at random (`UpliftLog`).

Two effects are estimated, both on the effective view of single impressions, which says far more per session than its length:

- *asking*: y - m(x) ≈ (asked - e) gain(x), with e the known probability of asking, m a boosted regression of y that never saw
  the session, and a gain that is piecewise linear: the R-learner (Nie and Wager 2021, arXiv 1712.04912). Asking being random,
  what makes a session good cannot pass for what asking wins.
- *depth*: how the i-th impression of a page of k compares with the first of any: y ≈ session + a ln k + b ln((k - i) / k)
  + c i, within sessions.

With the chance that a session goes on, the second says what pages of k, each after i impressions of the last, win per
impression, and what they cost (`PagePlan`). Only plans that are the best at some price stay.
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
    """What asking costs, and how its gain is learned."""

    request_cost: float = 0.5
    """Effective views that a page must win at price 1."""
    candidate_cost: float = 0.01
    """Effective views that each of its candidates must win, at any price: compute is dear in a crunch, transfer is not. Both
    costs are choices of ours; a page of 50 is then as dear to move as to make at price 1."""
    sizes: tuple[int, ...] = (6, 9, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100)
    """Page sizes to choose from, within those that were logged."""
    consumed: tuple[int, ...] = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 60)
    """Impressions of a page before the next to choose from, within its size."""
    folds: int = 5
    """Of sessions, for m."""
    ridge: tuple[float, ...] = (30.0, 100.0, 300.0, 1000.0)
    """Strengths of the penalty on a term's weight (in standard deviations of the term) to choose from."""
    bends: tuple[str, ...] = ("best", "left")
    """Features in which the gain is not linear: it is next to nothing until little is left that is worth showing."""
    knots: tuple[float, ...] = (0.05, 0.15, 0.3, 0.5)
    """Quantiles of those at which it may bend."""


@dataclass(frozen=True)
class UpliftLog:
    """Impressions of sessions that asked at random, and the decision before each. n rows, F features."""

    names: tuple[str, ...]
    """[F] of the features of the state before the decision"""
    x: Floats
    """[n, F]; a row of NaN where the values of what was left were not known"""
    session: NDArray[np.int64]
    """[n]"""
    asked: NDArray[np.bool_]
    """[n]"""
    probability: Floats
    """[n] of having asked; 1 where asking was forced"""
    size: NDArray[np.int64]
    """[n] of the page that the impression is from"""
    depth: NDArray[np.int64]
    """[n] impressions of that page before this one"""
    effective: NDArray[np.bool_]
    """[n] whether the view was effective"""
    simulated: bool
    """Whether no real user is in it."""

    def save(self, file: Path) -> None:
        """Write it as NPZ, whole or not at all."""
        with replacing(file) as part, part.open("wb") as out:  # numpy appends `.npz` to a path of another name
            np.savez_compressed(out, **asdict(self))

    @classmethod
    def load(cls, file: Path) -> UpliftLog:
        """Read what `save` wrote. Raises OSError and ValueError for a file that it did not."""
        with np.load(file, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
        return cls(**held | {"names": tuple(held["names"].tolist()), "simulated": bool(held["simulated"])})


def train_uplift(log: UpliftLog, config: UpliftConfig = UpliftConfig(), *, seed: int = 0) -> PagingModel:
    """The model that a device asks by. Raises ValueError for a log without random decisions or of one session."""
    bias, terms = _gain(log, config, seed)
    return PagingModel(
        bias=bias,
        terms=terms,
        plans=_plans(log, config),
        simulated=log.simulated,
    )


def _gain(log: UpliftLog, config: UpliftConfig, seed: int) -> tuple[float, tuple[PagingTerm, ...]]:
    """What asking wins at the next impression: bias and terms."""
    rows = np.isfinite(log.x).all(1) & (log.probability > 0) & (log.probability < 1)
    x, y, session = log.x[rows], log.effective[rows].astype(np.float64), log.session[rows]
    if len(np.unique(session)) < config.folds or not 0 < log.asked[rows].sum() < rows.sum():
        raise ValueError(f"expected {config.folds} sessions or more that asked at random, got {rows.sum()} decisions")
    boosted = HistGradientBoostingRegressor(max_depth=4, learning_rate=0.05, max_iter=100, random_state=seed)
    m = cross_val_predict(boosted, x, y, groups=session, cv=GroupKFold(config.folds))
    surprise = log.asked[rows] - log.probability[rows]
    bends = [log.names.index(name) for name in config.bends if name in log.names]
    knots = [(i, float(knot)) for i in bends for knot in np.unique(np.quantile(x[:, i], config.knots))]
    columns = np.column_stack([x, *(np.maximum(knot - x[:, i], 0) for i, knot in knots)])
    scaler = StandardScaler().fit(columns)
    fitted = RidgeCV(config.ridge).fit(scaler.transform(columns), (y - m) / surprise, sample_weight=surprise**2)
    weights = fitted.coef_ / scaler.scale_
    of = [*((i, None) for i in range(x.shape[1])), *knots]
    terms = [PagingTerm(feature=log.names[i], weight=float(w), knot=k) for w, (i, k) in zip(weights, of, strict=True) if w]
    return float(fitted.intercept_ - weights @ scaler.mean_), tuple(terms)


def _plans(log: UpliftLog, config: UpliftConfig) -> tuple[PagePlan, ...]:
    """The steady ways to ask that are the best at some price, dearer and dearer."""
    _, session, counts = np.unique(log.session, return_inverse=True, return_counts=True)
    position = np.arange(len(session)) - np.repeat(np.cumsum(counts) - counts, counts)
    stays = 1 - 1 / counts.mean()
    size, depth = log.size.astype(np.float64), log.depth.astype(np.float64)
    columns = np.column_stack([*_depth(size, depth), np.log1p(position), log.effective])
    within = columns - (np.add.reduceat(columns, np.cumsum(counts) - counts) / counts[:, None])[session]
    fitted = LinearRegression(fit_intercept=False).fit(within[:, :-1], within[:, -1])
    effect = fitted.coef_[:3]
    first = log.depth == 0
    usual = effect[0] * np.log(size[first]).mean()  # what the gain of asking was measured with
    plans = []
    for k in (k for k in config.sizes if k <= log.size.max()):
        shown = np.arange(k)
        wins = np.stack(_depth(np.full(k, float(k)), shown.astype(np.float64)), 1) @ effect - usual
        discount = stays**shown
        # A page is paid for at its first impression; paid by the impression, that is its share of the discounted ones.
        share = 1 / np.cumsum(discount)
        level = (np.cumsum(discount * wins) - config.candidate_cost * k) * share
        plans += [
            PagePlan(size=k, consume=i, level=float(level[i - 1]), drop=float(config.request_cost * share[i - 1]))
            for i in config.consumed
            if i <= k
        ]
    return _best(plans)


def _depth(size: Floats, depth: Floats) -> tuple[Floats, Floats, Floats]:
    """What tells how impression `depth` of a page of `size` compares with others: choice at first, choice left, age."""
    return np.log(size), np.log((size - depth) / size), depth


def _best(plans: list[PagePlan]) -> tuple[PagePlan, ...]:
    """Those on the upper envelope of level - price drop over prices from 0, less those for smaller pages than a cheaper one."""
    kept: list[PagePlan] = []
    plan = max(plans, key=lambda plan: (plan.level, -plan.drop))
    while True:
        kept.append(plan)
        later = [p for p in plans if p.drop < plan.drop and p.size >= plan.size]
        if not later:
            return tuple(kept)
        plan = min(later, key=lambda p: ((plan.level - p.level) / (plan.drop - p.drop), p.drop))
