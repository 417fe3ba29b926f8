"""From what happened on the phones to figures: means per session with intervals, what reordering won, latencies.

Intervals are percentile bootstraps over users (Efron & Tibshirani 1993, chapter 13): a user's sessions stay together, and all
policies are resampled alike, so a difference between policies is a paired one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdk_demo.emulator.phone import SessionRecord

__all__ = ["FIGURES", "FigureConfig", "figures"]

Floats = NDArray[np.float64]

FIGURES = (
    "effective_views_per_session", "likes_per_session", "follows_per_session", "watch_s_per_session", "items_per_session",
    "requests_per_session",
)  # fmt: skip
"""Means per session of each policy."""


@dataclass(frozen=True)
class FigureConfig:
    """How figures are made."""

    resamples: int = 2000
    """Bootstrap resamples; the ends of a 95 % interval then have fifty beyond them."""
    positions: int = 60
    """Positions told one by one."""
    histogram_ms: tuple[float, float, int] = (0.05, 200.0, 48)
    """First edge, last edge and bins of latency histograms; bins are equal in the logarithm, the ends take what is beyond."""


def figures(
    records: Sequence[SessionRecord], policies: Sequence[str], *, seed: int, config: FigureConfig = FigureConfig()
) -> dict[str, Any]:
    """The figures of `records`, which hold the same sessions for each of `policies`.

    `policies.<policy>.<figure>` and `<figure>_ci95`; `gain.<policy>.<figure>` over cloud order as `{mean, ci95}`;
    `uplift_share` of `on_device` as `{mean, ci95}`, null where the oracle wins nothing; `by_position.<policy>`;
    `latency_ms`; `counters.<policy>`. What needs a policy that did not take part is null.
    """
    of = {policy: [r for r in records if r.policy == policy] for policy in policies}
    sums, counts = _by_user(of)
    users = len(counts)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0xB007])))
    weights = rng.multinomial(users, np.full(users, 1 / users), size=config.resamples).astype(np.float64)
    sessions = weights @ counts
    means = {policy: sums[policy].sum(0) / counts.sum() for policy in policies}
    drawn = {policy: (weights @ sums[policy]) / sessions[:, None] for policy in policies}
    row: dict[str, Any]
    report: dict[str, Any] = {"policies": {}, "gain": {}, "uplift_share": None}
    for policy in policies:
        report["policies"][policy] = row = {}
        for i, name in enumerate(FIGURES):
            row[name] = float(means[policy][i])
            row[f"{name}_ci95"] = _interval(drawn[policy][:, i])
    floor = "cloud_order"
    for policy in policies:
        if floor in of and policy != floor:
            report["gain"][policy] = {
                name: {
                    "mean": float(means[policy][i] - means[floor][i]),
                    "ci95": _interval(drawn[policy][:, i] - drawn[floor][:, i]),
                }
                for i, name in enumerate(FIGURES)
            }
    if {floor, "on_device", "oracle"} <= set(policies):
        won, most = (
            np.append(means[p][0] - means[floor][0], drawn[p][:, 0] - drawn[floor][:, 0]) for p in ("on_device", "oracle")
        )
        if most[0] > 0:
            share = np.divide(won, most, out=np.full_like(won, np.nan), where=most > 0)
            report["uplift_share"] = {"mean": float(share[0]), "ci95": _interval(share[1:])}
    report["by_position"] = {policy: _by_position(of[policy], config.positions) for policy in policies}
    report["latency_ms"] = _latencies(records, config)
    report["counters"] = {policy: _counters(of[policy]) for policy in policies}
    return report


def _by_user(of: dict[str, list[SessionRecord]]) -> tuple[dict[str, Floats], Floats]:
    """Sums [users, figures] for each policy, and sessions [users]; users in ascending order of id."""
    sums, counts = {}, np.zeros(0)
    for policy, records in of.items():
        values = np.array(
            [[sum(r.effective), r.likes, r.follows, r.watch_ms / 1000, len(r.effective), r.requests] for r in records]
        )
        _, place = np.unique([r.user_id for r in records], return_inverse=True)
        counts = np.bincount(place).astype(np.float64)
        sums[policy] = np.zeros((len(counts), len(FIGURES)))
        np.add.at(sums[policy], place, values)
    return sums, counts


def _interval(values: Floats) -> list[float] | None:
    known = values[np.isfinite(values)]
    return [float(v) for v in np.quantile(known, (0.025, 0.975))] if len(known) else None


def _by_position(records: Sequence[SessionRecord], positions: int) -> dict[str, list[float | None]]:
    """By position: share of sessions that came so far, rate of effective views there, effective views per session so far."""
    longest = min(positions, max(len(r.effective) for r in records))
    shown = np.array([sum(len(r.effective) > p for r in records) for p in range(longest)])
    effective = np.array([sum(r.effective[p] for r in records if len(r.effective) > p) for p in range(longest)])
    return {
        "alive": (shown / len(records)).tolist(),
        "effective_view_rate": [e / n if n else None for e, n in zip(effective.tolist(), shown.tolist(), strict=True)],
        "effective_views_so_far": (effective.cumsum() / len(records)).tolist(),
    }


def _latencies(records: Sequence[SessionRecord], config: FigureConfig) -> dict[str, Any]:
    """Percentiles and histograms of the SDK's `next` with the model, and of pages; null where there were none."""
    first, last, bins = config.histogram_ms
    edges = np.geomspace(first, last, bins + 1)
    out: dict[str, Any] = {}
    for name, parts in (("rerank", [r.rerank_ms for r in records]), ("page", [r.page_ms for r in records])):
        values = np.array([value for part in parts for value in part])
        for percent in (50, 99):
            out[f"{name}_p{percent}"] = float(np.percentile(values, percent)) if len(values) else None
        out[f"{name}_histogram"] = {
            "edges": edges.tolist(),
            "counts": np.histogram(values.clip(first, last), edges)[0].tolist(),
        }
    return out


def _counters(records: Sequence[SessionRecord]) -> dict[str, int]:
    """The SDK's counters and the phones' own, summed."""
    totals: dict[str, int] = {}
    for r in records:
        own = {"pages_missing": r.pages_missing, "uploads_missing": r.uploads_missing, "sessions_starved": int(r.starved)}
        for name, value in (asdict(r.counters) | own).items():
            totals[name] = totals.get(name, 0) + value
    return totals
