"""Inspection of a session's trace: its decisions, and the reasons for one of them.

Errors::

    ForeignBundleError         the bundle is not the one that the session used
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import BundleError
from pocketrank.device.contract import CategoryFeature, Ended, FeatureSpec, Form, Network, Orientation
from pocketrank.device.reports.trace import CorruptTraceError, CutTraceError, TracedDecision, read_trace

if TYPE_CHECKING:
    from pocketrank.export.explain import Explanation

__all__ = ["ForeignBundleError", "did", "inspect_session", "why"]

_CODES: dict[str, type[IntEnum]] = {"ended": Ended, "network": Network, "orientation": Orientation}
_NEAR = 1e-6  # relative rounding of a float32
_DIGITS = 3


class ForeignBundleError(BundleError):
    """The bundle is not the one that the session used."""


def inspect_session(path: Path) -> tuple[dict[str, Any], list[TracedDecision]]:
    """Return a report of the session whose trace is at `path`, and its decisions as `why` takes them.

    `damage` is the error at which reading stopped early, and `cut` whether a killed process leaves such a trace. Raises
    `TraceError` for a file that is no trace.
    """
    decisions: list[TracedDecision] = []
    report: dict[str, Any] = {"kind": "session", "path": str(path), "damage": None, "cut": False}
    try:
        decisions.extend(read_trace(path))
    except (CutTraceError, CorruptTraceError) as err:
        report |= {"damage": str(err), "cut": isinstance(err, CutTraceError)}
    return report | {"decisions": [_row(decision) for decision in decisions]}, decisions


def _row(decision: TracedDecision) -> dict[str, Any]:
    """Return one decision as plain values. Ranks count from 1: the shown item's `cloud_rank`, and its `rank` as ordered."""
    place = np.flatnonzero(decision.held == decision.shown)
    at = int(place[0]) if len(place) else None
    total = decision.total
    shown_total = best_other = None
    if total is not None and at is not None and at < len(total):
        shown_total = float(total[at])
        best_other = float(np.delete(total, at).max()) if len(total) > 1 else None
    return {
        "position": decision.position,
        "now_ms": decision.now_ms,
        "page_id": decision.page_id,
        "bundle": decision.bundle,
        "split_version": decision.split_version,
        "form": decision.form,
        "fallback": decision.fallback,
        "ordered": decision.scores is not None,
        "personal": decision.personal,
        "shown": decision.shown,
        "held": len(decision.held),
        "events": len(decision.event_items),
        "cloud_rank": None if at is None else at + 1,
        "rank": None if at is None else int(np.flatnonzero(decision.order == at)[0]) + 1,
        "total": shown_total,
        "best_other": best_other,
        "strategies": list(decision.strategies),
        "paging": None if decision.paging is None else decision.paging._asdict(),
        "spent_ms": decision.spent_ms,
    }


def why(decision: TracedDecision, bundle: Bundle | None = None) -> dict[str, Any]:
    """Return the reasons for a decision: its candidates in their order, and its events newest first.

    With the `bundle` of the session its model is run again. Events then have the shown item's `attention` by head, and their
    `influence` on its scores and on their weighted sum, `total`. Candidates have attention and influence for each event, newest
    first, attention averaged over heads and influence on the weighted sum; and `unwatched`, their rank without any event.
    `explained` holds the model that was run, the largest difference of its scores from the recorded ones (`differs`), and the
    attention to the null key by head.

    Raises `ForeignBundleError`, `pocketrank.export.explain.ExplainError`.
    """
    report: dict[str, Any] = {"decision": _row(decision), "explained": None}
    spec, inputs = decision.spec, decision.inputs
    if spec is None or decision.form is None or not inputs:
        candidates = [{"item": int(decision.held[i]), "cloud_rank": i + 1} for i in decision.order.tolist()]
        return report | {"candidates": candidates, "events": []}
    explained = None if bundle is None else _explained(decision, decision.form, bundle)
    scores = decision.scores if explained is None or decision.scores is not None else explained.scores
    shown = np.flatnonzero(decision.held[: inputs["candidate_mask"].shape[1]] == decision.shown)
    at = int(shown[0]) if len(shown) else None
    report |= {
        "tasks": list(spec.tasks),
        "task_weights": spec.task_weights,
        "search": None if spec.search is None else msgspec.structs.asdict(spec.search),
        "candidates": _candidates(decision, spec, scores, explained),
        "events": _events(decision, spec, at, explained),
    }
    if bundle is not None and explained is not None:
        heads = None if at is None or explained.attention is None else explained.attention[:, at, 0].tolist()
        differs = None if decision.scores is None else np.abs(explained.scores[: len(decision.scores)] - decision.scores).max()
        report["explained"] = {
            "model": explained.model.relative_to(bundle.folder).as_posix(),
            "differs": differs,
            "null_attention": heads,
        }
    return report


def _explained(decision: TracedDecision, form: Form, bundle: Bundle) -> Explanation:
    from pocketrank.export.explain import explain  # imported late: it needs torch

    name = f"{bundle.manifest.name}/{bundle.manifest.serial}"
    if decision.split_version != bundle.split_version or decision.bundle not in (None, name):
        expected = f"the bundle {decision.bundle or 'of the session'}, split version {decision.split_version}"
        raise ForeignBundleError(str(bundle.folder), expected, f"{name}, {bundle.split_version}")
    return explain(bundle, form, decision.inputs)


def _newest_first(decision: TracedDecision) -> list[int]:
    """Return the rows of the events without padding, newest first."""
    rows: list[int] = np.flatnonzero(decision.inputs["event_mask"][0])[::-1].tolist()
    return rows


def _candidates(
    decision: TracedDecision, spec: FeatureSpec, scores: NDArray[np.float32] | None, explained: Explanation | None
) -> list[dict[str, Any]]:
    events, weights = _newest_first(decision), _weights(spec)
    categories = decision.inputs["candidate_category"][0]
    unwatched = [] if explained is None else (explained.unwatched @ -weights).argsort(kind="stable").tolist()
    rows = []
    for place in decision.order.tolist():
        row: dict[str, Any] = {"item": int(decision.held[place]), "cloud_rank": place + 1}
        if place < len(categories):
            row["categories"] = _by_name(spec.candidate_categories, categories[place])
        if scores is not None and place < len(scores):
            row |= {"scores": _by_task(spec, scores[place]), "total": float(scores[place] @ weights)}
        if explained is not None and place < len(unwatched):
            row["unwatched"] = unwatched.index(place) + 1
            row["influence"] = (explained.influence[events, place] @ weights).tolist()
            if explained.attention is not None:
                row["attention"] = explained.attention[:, place].mean(0)[1:][events].tolist()
        rows.append(row)
    return rows


def _events(decision: TracedDecision, spec: FeatureSpec, at: int | None, explained: Explanation | None) -> list[dict[str, Any]]:
    inputs, weights, rows = decision.inputs, _weights(spec), []
    for t in _newest_first(decision):
        seconds, positions = inputs["event_gap"][0, t, :2].tolist()
        row: dict[str, Any] = {
            "item": int(decision.event_items[t]),
            "seconds_ago": seconds,
            "positions_ago": round(positions),
            "did": did(spec, inputs["event_feedback"][0, t]),
            "categories": _by_name(spec.candidate_categories, inputs["event_category"][0, t]),
        }
        if explained is not None and at is not None:
            influence = explained.influence[t, at]
            row["influence"] = _by_task(spec, influence) | {"total": float(influence @ weights)}
            row["attention"] = None if explained.attention is None else explained.attention[:, at, 1 + t].tolist()
        rows.append(row)
    return rows


def did(spec: FeatureSpec, feedback: NDArray[np.float32]) -> dict[str, float | str]:
    """Return the feedback that the model received for an event, in the units of a `FeedbackEvent`.

    It holds the watch time and every feature that differs from its default. Values were clipped to a feature's limits. A flag
    is True.
    """
    found: dict[str, float | str] = {}
    for feature, value in zip(spec.feedback_floats, feedback.tolist(), strict=False):
        if feature.name == "watch_ms" or abs(value - feature.default) > _NEAR:
            raw = round(value / feature.scale if feature.scale else value, _DIGITS)
            codes = {float(code): code.name.lower() for code in _CODES.get(feature.name, ())}
            flag = raw == 1 and (feature.min, feature.default, feature.max) == (0, 0, 1)
            found[feature.name] = codes.get(raw, flag or raw)
    return found


def _weights(spec: FeatureSpec) -> NDArray[np.float32]:
    return np.array([spec.task_weights.get(task, 0.0) for task in spec.tasks], np.float32)


def _by_task(spec: FeatureSpec, values: NDArray[np.float32]) -> dict[str, float]:
    return dict(zip(spec.tasks, values.tolist(), strict=True))


def _by_name(features: Iterable[CategoryFeature], values: NDArray[np.integer]) -> dict[str, int]:
    return {feature.name: int(value) for feature, value in zip(features, values, strict=False)}
