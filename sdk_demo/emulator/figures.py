"""From what happened on the phones to figures: means per session with intervals, what reordering won, latencies.

Intervals are percentile bootstraps over users (Efron & Tibshirani 1993, chapter 13): a user's sessions stay together, and all
policies are resampled alike, so a difference between policies is a paired one. Sessions with the models of several trainings
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
    """How figures are made."""

    floor: str = "cloud_order"
    """The policy that gains are counted from."""
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

    `policies.<policy>.<figure>` and `<figure>_ci95`; `gain.<policy>.<figure>` over the floor as `{mean, ci95}`, and there
    `uplift_share`: the gain in effective views by the oracle's, null where the oracle wins nothing; `uplift_share` again, of
    `on_device`; `by_position.<policy>`; `latency_ms`; `counters.<policy>`. What needs a policy that did not take part is null.
    """
    of = {policy: [r for r in records if r.policy == policy] for policy in policies}
    means, drawn = _resampled(of, seed, config)
    row: dict[str, Any]
    report: dict[str, Any] = {"policies": {}, "gain": {}}
    for policy in policies:
        report["policies"][policy] = row = {}
        for i, name in enumerate(FIGURES):
            row[name] = float(means[policy][i])
            row[f"{name}_ci95"] = _interval(drawn[policy][:, i])
    floor = config.floor
    # First the gain itself, then those of the resamples: [1 + resamples, figures].
    won = {p: np.vstack([means[p] - means[floor], drawn[p] - drawn[floor]]) for p in policies if floor in of and p != floor}
    for policy, gains in won.items():
        report["gain"][policy] = row = {name: _told(gains[:, i]) for i, name in enumerate(FIGURES)}
        most = won["oracle"][:, 0] if "oracle" in won else np.zeros(1)
        row["uplift_share"] = _told(_ratio(gains[:, 0], most)) if most[0] > 0 else None
    report["uplift_share"] = report["gain"].get("on_device", {}).get("uplift_share")
    report["by_position"] = {policy: _by_position(of[policy], config.positions) for policy in policies}
    report["latency_ms"] = _latencies(records, config)
    report["counters"] = {policy: _counters(of[policy]) for policy in policies}
    return report


def resampled(
    records: Sequence[SessionRecord], policies: Sequence[str], *, seed: int, config: FigureConfig = FigureConfig()
) -> dict[str, Floats]:
    """`FIGURES` [1 + resamples, figures] of each policy: those of all sessions first, then those of resamples, which are the
    same for all policies.
    """
    means, drawn = _resampled({policy: [r for r in records if r.policy == policy] for policy in policies}, seed, config)
    return {policy: np.vstack([means[policy], drawn[policy]]) for policy in policies}


def _resampled(
    of: dict[str, list[SessionRecord]], seed: int, config: FigureConfig
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Of each policy, the means [figures] and those of resamples [resamples, figures]."""
    sums, counts = _by_user(of)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0xB007])))
    of_user, of_training = (
        rng.multinomial(n, np.full(n, 1 / n), size=config.resamples).astype(np.float64) for n in reversed(counts.shape)
    )

    def drawn(values: Floats) -> Floats:
        """Sums [resamples, n] of [trainings, users, n]."""
        return np.asarray((of_training.T[:, :, None] * (of_user @ values)).sum(0))

    sessions = drawn(counts[:, :, None])
    means = {policy: sums[policy].sum((0, 1)) / counts.sum() for policy in of}
    return means, {policy: _ratio(drawn(sums[policy]), sessions) for policy in of}


def _by_user(of: dict[str, list[SessionRecord]]) -> tuple[dict[str, Floats], Floats]:
    """Sums [trainings, users, figures] for each policy, and sessions [trainings, users]; both in ascending order of id."""
    sums, counts = {}, np.zeros((0, 0))
    for policy, records in of.items():
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
    """`part` by `whole`, NaN where that is not positive: a resample may draw no session, or an oracle that wins nothing."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _told(values: Floats) -> dict[str, Any]:
    """A figure, the first of `values`, with the interval that the others make."""
    return {"mean": float(values[0]), "ci95": _interval(values[1:])}


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
