"""Figures of an emulation: means per session with intervals, gains over cloud order, latencies.

Intervals are percentile bootstraps over users (Efron & Tibshirani 1993, chapter 13): a user's sessions stay together, and all
policies use the same resamples, so that differences between policies are paired. Sessions with the models of several trainings
are resampled over users and, independently, over trainings (the pigeonhole bootstrap: Owen 2007, arXiv 0712.1111).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.sdk_demo.emulator.records import SessionRecord

__all__ = ["FIGURES", "FigureConfig", "figures", "resampled"]

Floats = NDArray[np.float64]

FIGURES = (
    "effective_views_per_session", "likes_per_session", "follows_per_session", "watch_s_per_session", "items_per_session",
    "requests_per_session", "candidates_per_session",
)  # fmt: skip
"""Means per session of each policy."""


@dataclass(frozen=True)
class FigureConfig:
    """Parameters of the figures."""

    floor: str = "cloud_order"
    """Policy that gains are relative to."""
    resamples: int = 2000
    """Bootstrap resamples; 50 of them are beyond each end of a 95 % interval."""
    positions: int = 60
    """Largest number of positions that are reported one by one."""
    histogram_ms: tuple[float, float, int] = (0.05, 200.0, 48)
    """First edge, last edge and number of a latency histogram's bins, equal in the logarithm; the outer ones are open."""


def figures(
    records: Sequence[SessionRecord], policies: Sequence[str], *, seed: int, config: FigureConfig = FigureConfig()
) -> dict[str, Any]:
    """Return the figures of `records`, which hold the same sessions for each of `policies`.

    `policies.<policy>.<figure>` and `<figure>_ci95` are means and intervals; `gain.<policy>.<figure>` the gain over
    `config.floor` as `{mean, ci95}`; `gain.<policy>.uplift_share` the gain in effective views divided by the oracle's, null
    where the oracle gains nothing; `uplift_share` that of `on_device`. Then come `by_position.<policy>`, `latency_ms` and
    `counters.<policy>`. Figures that need a policy which did not take part are null.
    """
    by_policy = _by_policy(records, policies)
    values = resampled(records, policies, seed=seed, config=config)
    row: dict[str, Any]
    report: dict[str, Any] = {"policies": {}, "gain": {}}
    for policy in policies:
        report["policies"][policy] = row = {}
        for i, name in enumerate(FIGURES):
            row[name] = float(values[policy][0, i])
            row[f"{name}_ci95"] = _interval(values[policy][1:, i])
    # Differences within a resample are paired: [1 + resamples, figures].
    floor = config.floor
    gains_of = {p: values[p] - values[floor] for p in policies if floor in by_policy and p != floor}
    for policy, gains in gains_of.items():
        report["gain"][policy] = row = {name: _with_interval(gains[:, i]) for i, name in enumerate(FIGURES)}
        uplift = gains_of["oracle"][:, 0] if "oracle" in gains_of else np.zeros(1)
        row["uplift_share"] = _with_interval(_ratio(gains[:, 0], uplift)) if uplift[0] > 0 else None
    report["uplift_share"] = report["gain"].get("on_device", {}).get("uplift_share")
    report["by_position"] = {policy: _by_position(by_policy[policy], config.positions) for policy in policies}
    report["latency_ms"] = _latencies(records, config)
    report["counters"] = {policy: _counters(by_policy[policy]) for policy in policies}
    return report


def resampled(
    records: Sequence[SessionRecord], policies: Sequence[str], *, seed: int, config: FigureConfig = FigureConfig()
) -> dict[str, Floats]:
    """Return `FIGURES` [1 + resamples, figures] of each policy, first of all sessions, then of each resample.

    Resamples are the same for all policies.
    """
    sums, counts = _by_user(_by_policy(records, policies))
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0xB007])))
    of_user, of_training = (
        rng.multinomial(n, np.full(n, 1 / n), size=config.resamples).astype(np.float64) for n in reversed(counts.shape)
    )

    def drawn(values: Floats) -> Floats:
        """Return the sums [resamples, n] of `values` [trainings, users, n]."""
        return np.asarray((of_training.T[:, :, None] * (of_user @ values)).sum(0))

    sessions = drawn(counts[:, :, None])
    return {
        policy: np.vstack([total.sum((0, 1)) / counts.sum(), _ratio(drawn(total), sessions)]) for policy, total in sums.items()
    }


def _by_policy(records: Sequence[SessionRecord], policies: Sequence[str]) -> dict[str, list[SessionRecord]]:
    return {policy: [record for record in records if record.policy == policy] for policy in policies}


def _by_user(by_policy: dict[str, list[SessionRecord]]) -> tuple[dict[str, Floats], Floats]:
    """Return sums [trainings, users, figures] of each policy, and sessions [trainings, users], in ascending order of ids."""
    sums, counts = {}, np.zeros((0, 0))
    for policy, records in by_policy.items():
        values = np.array(
            [
                [sum(r.effective), r.likes, r.follows, r.watch_ms / 1000, len(r.effective), r.requests, r.candidates]
                for r in records
            ]
        )
        trainings, training = np.unique([r.training for r in records], return_inverse=True)
        users, user = np.unique([r.user_id for r in records], return_inverse=True)
        counts = np.zeros((len(trainings), len(users)))
        np.add.at(counts, (training, user), 1)
        sums[policy] = np.zeros((*counts.shape, len(FIGURES)))
        np.add.at(sums[policy], (training, user), values)
    return sums, counts


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Return `part` / `whole`, NaN where `whole` is not positive, as in a resample without sessions or uplift."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _with_interval(values: Floats) -> dict[str, Any]:
    """Return the figure of all sessions, the first of `values`, with the interval of those of the resamples."""
    return {"mean": float(values[0]), "ci95": _interval(values[1:])}


def _interval(values: Floats) -> list[float] | None:
    known = values[np.isfinite(values)]
    return [float(v) for v in np.quantile(known, (0.025, 0.975))] if len(known) else None


def _by_position(records: Sequence[SessionRecord], positions: int) -> dict[str, list[float | None]]:
    """Return by position: the share of sessions that reach it, the rate of effective views, effective views so far."""
    longest = min(positions, max(len(r.effective) for r in records))
    shown = np.array([sum(len(r.effective) > p for r in records) for p in range(longest)])
    effective = np.array([sum(r.effective[p] for r in records if len(r.effective) > p) for p in range(longest)])
    return {
        "alive": (shown / len(records)).tolist(),
        "effective_view_rate": [e / n if n else None for e, n in zip(effective.tolist(), shown.tolist(), strict=True)],
        "effective_views_so_far": (effective.cumsum() / len(records)).tolist(),
    }


def _latencies(records: Sequence[SessionRecord], config: FigureConfig) -> dict[str, Any]:
    """Return percentiles and histograms of the SDK's `next` with the model and of pages; null where there were none."""
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
    """Return the sums of the SDK's counters and of the phones' own."""
    totals: dict[str, int] = {}
    for r in records:
        own = {"pages_missing": r.pages_missing, "uploads_missing": r.uploads_missing, "sessions_starved": int(r.starved)}
        for name, value in (asdict(r.counters) | own).items():
            totals[name] = totals.get(name, 0) + value
    return totals
