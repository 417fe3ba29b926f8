"""What fresh features and fresh parameters win on a log: `python -m benchmarks.staleness RUN --json FILE`.

`RUN` was trained with a `--test-from`, and has its log beside it, as `pocketrank train --data` leaves it. Its dense layers
stand still. The rows of the test days are scored in the order of time and learned after that, as `pocketrank learn` learns
them, in batches of a few dozens. What a score may know is cut at the last multiple of an interval before the impression:

- **features**: the user's history,
- **parameters**: what the rows of items and users have learned of the test days.

`frozen` is the beginning of the test days, `event` the impression itself, or for parameters the batch. ::

    staleness.FEATURES.PARAMETERS.TASK.{auc, within_user}     within_user is the mean of GAUC and nDCG@5, both by user
    kept.TASK.{auc, within_user}      of what event wins over frozen in both, the share that minute keeps; null
                                  where it wins nothing
    rows, learning_rate, statistics   test rows, and what was asked for
    published                         figures of others, with their source

Choose `--learning-rate` on a run that was tested on earlier days than those that you report.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.command import command_parser, count, figure_table, one_line_errors
from benchmarks.errors import BenchmarkError
from pocketrank.cloud.data.log import Log, open_log
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.sample_stream import build_samples
from pocketrank.cloud.data.samples import SampleConfig, Samples
from pocketrank.cloud.streams.messages import Sample, ServedInputs
from pocketrank.cloud.time_zones import day_start_ms
from pocketrank.cloud.training.increments import IncrementConfig, IncrementTraining
from pocketrank.cloud.training.learning_base import LearningBase, open_base
from pocketrank.cloud.training.metrics import auc, gauc, ndcg
from pocketrank.cloud.training.row_table import RowConfig
from pocketrank.cloud.training.run import Run
from pocketrank.sdk_demo.cli.output import JsonTarget, progress

__all__ = ["AGES", "main", "measure_staleness"]

AGES = {"frozen": None, "day": 86_400_000, "hour": 3_600_000, "minute": 60_000, "event": 0}
"""Intervals in milliseconds, in the order of freshness."""
_BATCH = 50
_METRICS = "auc", "within_user"
_TASKS = ("long_view", "like")
_PUBLISHED = {
    "Monolith (arXiv 2209.07663): AUC by interval of synchronisation": {
        "5 h": 0.7966,
        "1 h": 0.7978,
        "30 min": 0.7980,
    },
    "public KuaiRand-Pure: within-user mean of GAUC and nDCG@5": {"fresh": 0.614, "daily": 0.611, "frozen": 0.598},
}


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the figures."""
    parser = command_parser("staleness", __doc__ or "")
    parser.add_argument("run", type=Path, help="folder of a run, with its log")
    parser.add_argument("--log", type=Path, help="folder of the log [default: log in RUN]")
    parser.add_argument("--learning-rate", type=float, default=RowConfig().learning_rate, help="of the rows [%(default)s]")
    parser.add_argument("--statistics", action="store_true", help="go on with the statistics of items")
    parser.add_argument("--rows", type=count, help="first test rows that are scored [all]")
    options = parser.parse_args(arguments)
    target, run = JsonTarget(options.json), Run.open(options.run)
    log = open_log(options.log or options.run / "log")
    with progress(target.console, "scores of every age") as update:
        base, test_from = open_base(run.published), date.fromisoformat(run.record.test_from)
        report = measure_staleness(base, log, test_from, options.learning_rate, options.statistics, update, options.rows)
    target.write(report)
    _show(report, target.console)


def measure_staleness(
    base: LearningBase,
    log: Log,
    test_from: date,
    learning_rate: float,
    statistics: bool,
    update: Callable[[float], None] = lambda share: None,
    rows_max: int | None = None,
) -> dict[str, Any]:
    """Return the figures, of the first `rows_max` test rows or of all.

    Raises `BenchmarkError` for a log that ends before the test days.
    """
    config = SampleConfig(
        tasks=base.record.tasks, time_zone=log.time_zone, test_from=test_from, features=base.record.features.config,
        history_max=base.record.history_max,
    )  # fmt: skip
    samples = build_samples(log, config)
    of_test = ItemStatistics(samples).as_of(samples.learn_until)  # those that were published know the test days
    base = replace(base, statistics=of_test)
    began_ms = day_start_ms((test_from - date(1970, 1, 1)).days, log.time_zone)
    events = samples.row_event
    chosen = np.flatnonzero(samples.event_ms[events] >= began_ms)
    chosen = chosen[np.argsort(samples.event_ms[events[chosen]], kind="stable")][:rows_max]
    if not len(chosen):
        raise BenchmarkError(log.name, f"impressions from {test_from} on", "none")
    rows = RowConfig(learning_rate=learning_rate)
    increments = IncrementConfig(rows, rows, statistics=statistics)
    labels = np.stack([samples.event_labels[events[chosen], base.record.tasks.index(task)] for task in _tasks(base)], 1)
    users = samples.event_user[events[chosen]]
    table: dict[str, Any] = {}
    for number, (features, age) in enumerate(AGES.items()):
        scores = _scored(base, increments, _served(samples, base, chosen, age, began_ms), began_ms)
        table[features] = {
            parameters: {
                task: _figures(labels[:, k], of_age[:, base.record.tasks.index(task)], users)
                for k, task in enumerate(_tasks(base))
            }
            for parameters, of_age in scores.items()
        }
        update((number + 1) / len(AGES))
    both = {age: table[age][age] for age in AGES}
    kept = {
        task: {metric: _kept(*(both[age][task][metric] for age in ("frozen", "minute", "event"))) for metric in _METRICS}
        for task in _tasks(base)
    }
    return {
        "data": log.name, "simulated": log.simulated, "test_from": test_from.isoformat(), "rows": len(chosen),
        "learning_rate": learning_rate, "statistics": statistics, "staleness": table, "kept": kept, "published": _PUBLISHED,
    }  # fmt: skip


def _kept(frozen: float, minute: float, event: float) -> float | None:
    return (minute - frozen) / (event - frozen) if event > frozen else None


def _tasks(base: LearningBase) -> list[str]:
    return [task for task in base.record.tasks if task in _TASKS] or list(base.record.tasks[:2])


def _served(
    samples: Samples, base: LearningBase, chosen: NDArray[np.int64], age: int | None, began_ms: int
) -> Iterator[Sample]:
    """Yield the chosen rows as samples, with histories that end at the last multiple of `age` before them."""
    s, history_max, tasks = samples, base.record.history_max, base.record.tasks
    blank = bytes(4 * len(tasks))
    for row in chosen.tolist():
        event = int(s.row_event[row])
        at_ms, user, end = int(s.event_ms[event]), int(s.event_user[event]), event
        if age != 0:
            cut_ms = began_ms if age is None else max(began_ms, at_ms // age * age)
            first = int(s.user_start[user])
            end = first + int(np.searchsorted(s.event_ms[first:event], cut_ms))
        start = max(int(s.user_start[user]), end - history_max)
        known = zip(tasks, s.event_labels[event].tolist(), strict=True)
        labels = {task: bool(value) for task, value in known if not math.isnan(value)}
        place = s.row_list[row], s.row_slot[row]
        inputs = ServedInputs(
            user_id=int(s.user_ids[user]),
            scene=int(s.list_scene[place]) - 1,
            hour=max(0, int(s.list_hour[place]) - 1),
            history_item=s.item_ids[s.event_item[start:end]].astype("<i8").tobytes(),
            history_feedback=s.event_history[start:end].astype("<f4").tobytes(),
        )
        yield Sample(
            batch=0, of=0, page_id=str(row), item_id=int(s.item_ids[s.event_item[event]]), place=0, event_ms=at_ms,
            labels=labels, run="", inputs=inputs, pxtr=blank,
            statistics=s.event_statistics[event].astype("<f4").tobytes(),
        )  # fmt: skip


def _scored(
    base: LearningBase, config: IncrementConfig, rows: Iterator[Sample], began_ms: int
) -> dict[str, NDArray[np.float32]]:
    """Return the scores [R, K] by parameters of each age. All rows are learned, after they were scored."""
    learning = IncrementTraining(base, config)
    serving = {name: IncrementTraining(base, config) for name in AGES}
    synced_ms = dict.fromkeys(AGES, began_ms)
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in AGES}
    batch = list[Sample]()

    def flush() -> None:
        for name, of_age in serving.items():
            found[name].append(of_age.step(batch, learn=False).probability)
        learning.step(batch)
        batch.clear()

    for sample in rows:
        for name, age in AGES.items():
            if age is None:
                continue
            boundary = sample.event_ms if age == 0 else sample.event_ms // age * age
            if (age == 0 and not batch) or (age != 0 and boundary > synced_ms[name]):
                if batch:
                    flush()
                synced_ms[name] = boundary
                serving[name].items, serving[name].users = copy.deepcopy(learning.items), copy.deepcopy(learning.users)
                serving[name]._counts = copy.deepcopy(learning._counts)
        batch.append(sample)
        if len(batch) == _BATCH:
            flush()
    if batch:
        flush()
    return {name: np.concatenate(scores) for name, scores in found.items()}


def _figures(labels: NDArray[np.float32], scores: NDArray[np.float32], users: NDArray[np.int64]) -> dict[str, float]:
    within = [value for value in (gauc(labels, scores, users), ndcg(labels, scores, users, 5)) if value is not None]
    return {"auc": float(auc(labels, scores) or np.nan), "within_user": float(np.mean(within)) if within else float("nan")}


def _show(report: dict[str, Any], console: Console) -> None:
    for task in report["kept"]:
        table = figure_table(f"{task}: AUC / within-user mean; rows: age of features, columns: of parameters", *AGES)
        for features, by_age in report["staleness"].items():
            table.add_row(features, *(f"{of[task]['auc']:.4f} / {of[task]['within_user']:.4f}" for of in by_age.values()))
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
