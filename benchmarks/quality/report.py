"""From predictions to the report of `benchmarks.quality`: metrics, paired differences, aims and curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.models import AT_REQUEST, CURVE_SEEDS, CURVES, PEERS, Quality
from pocketrank.cloud.training.metrics import auc, over_seeds, ranking_metrics

__all__ = ["AIMS", "REFERENCE", "Aim", "report"]

REFERENCE = "server_score_refreshed"
"""Reference of every model, seed by seed: a feed that has no model on the device and asks for a page every six items."""


class Aim(NamedTuple):
    """What the split form should reach on a task: an AUC, and one above the reference."""

    auc: float
    above: float


AIMS = {"long_view": Aim(0.75, 0.015), "like": Aim(0.87, 0.010)}
"""Set before anything was measured. Beside them, the split form should be above each peer by two standard deviations."""
STANDARD_DEVIATIONS = 2.0
"""Of the paired differences over seeds, that a difference must exceed to count."""

_SINCE = ((0, 0), (1, 1), (2, 2), (3, 5), (6, None))
_KNOWN = ((0, 0), (1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, None))

Scores = NDArray[np.float32]


def report(quality: Quality, models: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the report except for the time it took; all predictions must exist.

    Paired differences and curves need `REFERENCE` among the models.
    """
    d = quality.data
    s, test = d.samples, quality.test
    of = {m: {seed: scores for seed in seeds if (scores := quality.scores(seed, m)) is not None} for m in models}
    table = _Table(s.config.tasks, s.event_labels[s.row_event[test]], s.event_user[s.row_event[test]], s.row_list[test])
    out: dict[str, Any] = {
        "data": {
            "name": d.name,
            "digest": d.digest,
            "train_to": d.train_to.isoformat(),
            "test_from": d.test_from.isoformat(),
            "training_rows": len(quality.rows),
            "test_rows": len(test),
            "test_positives": {task: int(np.nansum(table.labels[:, k])) for k, task in enumerate(table.tasks)},
        },
        "seeds": list(seeds),
        "fewer_seeds": {m: sorted(scores) for m, scores in of.items() if len(scores) < len(seeds)},
        "models": {m: table.metrics(scores.values()) for m, scores in of.items()},
    }
    if REFERENCE not in of:
        return out
    out["paired"] = {m: table.gain(of[m], of[REFERENCE]) for m in models if m != REFERENCE}
    if "split" not in of:
        return out
    out["aims"] = _aims(out, table, of)
    since, known = s.row_event - s.list_event[s.row_list], s.row_event - s.row_events_from
    references = {m: of[m] for m in ("server_score", REFERENCE) if m in of}
    out["curves"] = {
        "events_since_request": _by_events(table, since[test], _SINCE, of["split"], references),
        "events_known": _by_events(table, known[test], _KNOWN, of["split"], references),
    }
    if "boosted_trees" in of:
        before = {seed: scores for seed in seeds if (scores := quality.scores(seed, AT_REQUEST)) is not None}
        fresh = _by_events(table, since[test], _SINCE, of["boosted_trees"], {AT_REQUEST: before})
        out["curves"]["fresh_feedback"] = {"all": table.gain(of["boosted_trees"], before), **fresh}
    if "self_contained" in of:
        out["curves"]["training_share"] = _training_share(quality, table, seeds[:CURVE_SEEDS])
    return out


class _Table:
    """The test rows."""

    def __init__(self, tasks: Sequence[str], labels: Scores, users: NDArray[np.int64], lists: NDArray[np.int64]) -> None:
        self.tasks, self.labels, self.users, self.lists = tasks, labels, users, lists

    def of(self, rows: NDArray[np.bool_]) -> _Table:
        return _Table(self.tasks, self.labels[rows], self.users[rows], self.lists[rows])

    def metrics(self, seeds: Iterable[Scores]) -> dict[str, dict[str, float | None]]:
        """By task, over seeds."""
        scores = list(seeds)
        return {
            task: over_seeds([ranking_metrics(self.labels[:, k], p[:, k], self.users, self.lists) for p in scores])
            for k, task in enumerate(self.tasks)
        }

    def gain(self, model: dict[int, Scores], other: dict[int, Scores]) -> dict[str, dict[str, float | None]]:
        """By task, mean and standard deviation over seeds of the AUC of `model` above that of `other`."""
        return {task: _spread([self._gain(k, model[s], other[s]) for s in sorted(model)]) for k, task in enumerate(self.tasks)}

    def _gain(self, k: int, model: Scores, other: Scores) -> float | None:
        ours, theirs = auc(self.labels[:, k], model[:, k]), auc(self.labels[:, k], other[:, k])
        return None if ours is None or theirs is None else ours - theirs


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    whole = bool(known) and len(known) == len(values)
    return {"mean": fmean(known) if whole else None, "std": stdev(known) if whole and len(known) > 1 else None}


def _aims(out: dict[str, Any], table: _Table, of: dict[str, dict[int, Scores]]) -> dict[str, Any]:
    """For each task with an aim: what was wanted, what there is, and whether that is enough."""
    split = of["split"]
    above = {peer: table.gain(split, of[peer]) for peer in PEERS if peer in of}
    aims: dict[str, Any] = {}
    for task, aim in AIMS.items():
        reached, gained = out["models"]["split"][task]["auc"], out["paired"]["split"][task]["mean"]
        aims[task] = {
            "auc": {"aim": aim.auc, "split": reached, "met": _met(reached, aim.auc)},
            f"above_{REFERENCE}": {"aim": aim.above, "split": gained, "met": _met(gained, aim.above)},
            "above_peers": {peer: {**gain[task], "met": _clear(gain[task])} for peer, gain in above.items()},
        }
    return aims


def _met(value: float | None, aim: float) -> bool | None:
    return None if value is None else value >= aim


def _clear(gain: dict[str, float | None]) -> bool | None:
    mean, std = gain["mean"], gain["std"]
    return None if mean is None or std is None else mean > STANDARD_DEVIATIONS * std


def _by_events(
    table: _Table,
    count: NDArray[np.int64],
    bins: Sequence[tuple[int, int | None]],
    split: dict[int, Scores],
    references: dict[str, dict[int, Scores]],
) -> dict[str, Any]:
    """The gain of the split form over each reference, on the test rows with so many events."""
    curve: dict[str, Any] = {}
    for low, high in bins:
        rows = (count >= low) & (count <= (high if high is not None else count.max()))
        part = table.of(rows)
        mine = {seed: p[rows] for seed, p in split.items()}
        gains = {f"over_{name}": part.gain(mine, {seed: p[rows] for seed, p in of.items()}) for name, of in references.items()}
        name = f"{low}+" if high is None else f"{low}" if low == high else f"{low}-{high}"
        curve[name] = {"rows": int(rows.sum()), **gains}
    return curve


def _training_share(quality: Quality, table: _Table, seeds: Sequence[int]) -> dict[str, Any]:
    """The AUC of both forms after training on the rows of a share of the users, over a few seeds."""
    curve: dict[str, Any] = {}
    for form in ("self_contained", "split"):
        for share in (*CURVES, 1.0):
            name = form if share == 1 else f"{form}@{share}"
            scores = [p for seed in seeds if (p := quality.scores(seed, name)) is not None]
            by_task = table.metrics(scores)
            curve.setdefault(form, {})[str(share)] = {
                task: {key: figures[key] for key in ("auc", "auc_std")} for task, figures in by_task.items()
            }
    return curve
