"""What wrong labels and mixed-up inputs do to what is learned: `python -m benchmarks.freshness.guard --json FILE`.

Samples of a simulated world, 500 a second by their dates, are learned: right ones, then ones whose labels are flipped for five
minutes, then right ones. In another pass the inputs of the ranker are mixed up for a minute. All users are simulated. ::

    flipped.noticed_s          from the first flipped label until nothing is learned any more
    flipped.learned            flipped samples that were learned before that
    flipped.again_s            from the first right label after them until learning goes on
    flipped.auc.{before,worst,after}     of effective views on samples that are never learned: before the flip, the lowest that
                               was published at any second, and once learning went on; auc_loss: before less worst
    flipped.unguarded_auc      at the end of the five minutes where no guard stops them
    skew.reported_s            from the first mixed-up input until it is reported
    skew.share                 of samples that are found to be skewed, and `skew.without` where none is
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from msgspec.structs import replace
from rich.console import Console

from benchmarks.command import command_parser, figure_table, one_line_errors
from benchmarks.freshness.world import small_run, world
from pocketrank.cloud.data.entities import column, entities_of
from pocketrank.cloud.data.samples import history_values
from pocketrank.cloud.streams.event_log import NewRecord
from pocketrank.cloud.streams.messages import Sample, ServedInputs
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.cloud.training.guard import GuardConfig
from pocketrank.cloud.training.increments import IncrementTraining
from pocketrank.cloud.training.learner import Learner, LearnerConfig
from pocketrank.cloud.training.learning_base import LearningBase, open_base
from pocketrank.cloud.training.metrics import auc
from pocketrank.device.codec import to_msgpack
from pocketrank.sdk_demo.cli.output import JsonTarget

__all__ = ["main"]

_PER_S = 500
_BATCH = 100
_BEFORE_S, _FLIPPED_S, _AFTER_S, _SKEWED_S = 240, 300, 120, 60
_HELD_OUT = 4000
_NOW_MS = 1_900_000_000_000


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the figures."""
    parser = command_parser("freshness.guard", __doc__ or "")
    options = parser.parse_args(arguments)
    target = JsonTarget(options.json)
    with TemporaryDirectory(prefix="pocketrank-guard-") as name:
        base = open_base(small_run(Path(name) / "run").published)
        source = _Source(base)
        held_out = [next(source) for _ in range(_HELD_OUT)]
        report = {
            "simulated": True,
            "flipped": _flipped(Path(name), base, source, held_out),
            "skew": _skew(Path(name), base, source),
        }
    target.write(report)
    _show(report, target.console)


class _Source(Iterator[Sample]):
    """Samples of the world, log after log, each with the scores of the run."""

    def __init__(self, base: LearningBase) -> None:
        self._base, self._seed, self._number = base, 100, 0
        self._waiting = deque[Sample]()

    def __next__(self) -> Sample:
        while not self._waiting:
            self._waiting.extend(self._scored(self._of_log()))
        self._number += 1
        number = self._number
        dated = {"event_ms": _NOW_MS + 1000 * number // _PER_S, "batch": number // _BATCH + 1, "of": _BATCH}
        return replace(self._waiting.popleft(), page_id=str(number), **dated)

    def _of_log(self) -> list[Sample]:
        self._seed += 1
        log = world().simulate_log(seed=self._seed)
        entities, rows, record = entities_of(log, 0), log.impressions, self._base.record
        names = ("long_view", "like", "watch_log", "engaged", "logged", *record.actions)
        feedback = history_values(entities, names, rows)
        users, items = (column(rows, name, np.int64).tolist() for name in ("user_id", "item_id"))
        labels = {task: rows[task].to_pylist() for task in record.tasks}
        past: dict[int, deque[tuple[int, Any]]] = {}
        found = []
        for i, (user, item) in enumerate(zip(users, items, strict=True)):
            mine = past.setdefault(user, deque(maxlen=record.history_max))
            inputs = ServedInputs(
                user_id=user, scene=0, hour=12,
                history_item=np.array([one for one, _ in mine], "<i8").tobytes(),
                history_feedback=np.array([values for _, values in mine], "<f4").tobytes(),
            )  # fmt: skip
            known = {task: bool(values[i]) for task, values in labels.items() if values[i] is not None}
            found.append(
                Sample(
                    batch=0, of=0, page_id=str(i), item_id=item, place=0, event_ms=0, labels=known, run="run", inputs=inputs,
                    pxtr=b"",
                )
            )  # fmt: skip
            mine.append((item, feedback[i]))
        return found

    def _scored(self, samples: list[Sample]) -> list[Sample]:
        width = len(self._base.record.tasks)
        blank = [replace(one, pxtr=bytes(4 * width)) for one in samples]
        run = IncrementTraining(self._base)
        scores = [run.step(blank[i : i + 500], learn=False).probability for i in range(0, len(blank), 500)]
        return [replace(one, pxtr=row.tobytes()) for one, row in zip(samples, np.concatenate(scores), strict=True)]


class _Pass:
    """A learner that is fed with samples, second by second."""

    def __init__(self, folder: Path, base: LearningBase, name: str, config: LearnerConfig) -> None:
        self._log = SqliteEventLog(folder / f"{name}-events")
        self.learner = Learner(self._log, base, folder / f"{name}-state", config)

    def second(self, samples: Sequence[Sample]) -> None:
        for start in range(0, len(samples), _BATCH):
            records = [NewRecord(one.inputs.user_id, to_msgpack(one)) for one in samples[start : start + _BATCH]]
            self._log.append("samples", records)
        while self.learner.step():
            pass

    def auc(self, held_out: Sequence[Sample]) -> float:
        results = [self.learner.training.step(held_out[i : i + 500], learn=False) for i in range(0, len(held_out), 500)]
        labels, scores = (np.concatenate([getattr(one, name)[:, 0] for one in results]) for name in ("labels", "probability"))
        return float(auc(labels, scores) or 0.0)

    def close(self) -> None:
        self.learner.close()
        self._log.close()


def _flip(sample: Sample) -> Sample:
    return replace(sample, labels={name: not value for name, value in sample.labels.items()})


def _flipped(folder: Path, base: LearningBase, source: _Source, held_out: Sequence[Sample]) -> dict[str, Any]:
    guarded = _Pass(folder, base, "guarded", LearnerConfig())
    never = GuardConfig(ratio=(0.0, np.inf), loss=np.inf)
    unguarded = _Pass(folder, base, "unguarded", LearnerConfig(guard=never))
    found: dict[str, Any] = {"noticed_s": None, "again_s": None}
    with closing(guarded), closing(unguarded):
        for _ in range(_BEFORE_S):
            second = [next(source) for _ in range(_PER_S)]
            guarded.second(second)
            unguarded.second(second)
        if guarded.learner.counts.rollbacks:
            found["false_alarms"] = guarded.learner.counts.rollbacks
        before = worst = guarded.auc(held_out)
        skipped = guarded.learner.counts.skipped
        for number in range(_FLIPPED_S):
            second = [_flip(next(source)) for _ in range(_PER_S)]
            guarded.second(second)
            unguarded.second(second)
            if found["noticed_s"] is None:
                worst = min(worst, guarded.auc(held_out))
                if guarded.learner.counts.is_paused:
                    found["noticed_s"] = number + 1
                    found["learned"] = (number + 1) * _PER_S - (guarded.learner.counts.skipped - skipped)
        worst = min(worst, guarded.auc(held_out))
        found["unguarded_auc"] = unguarded.auc(held_out)
        for number in range(_AFTER_S):
            guarded.second([next(source) for _ in range(_PER_S)])
            if found["again_s"] is None and not guarded.learner.counts.is_paused:
                found["again_s"] = number + 1
        after = guarded.auc(held_out)
        found["auc"] = {"before": before, "worst": worst, "after": after}
        found["auc_loss"] = before - worst
        found["rollbacks"] = guarded.learner.counts.rollbacks
    return found


def _skew(folder: Path, base: LearningBase, source: _Source) -> dict[str, Any]:
    found: dict[str, Any] = {"reported_s": None}
    learning = _Pass(folder, base, "skew", LearnerConfig())
    limit = LearnerConfig().guard.skewed_share
    with closing(learning):
        for _ in range(_SKEWED_S):
            learning.second([next(source) for _ in range(_PER_S)])
        assert learning.learner.counts.verdict is not None
        found["without"] = learning.learner.counts.verdict.skewed
        for number in range(_SKEWED_S):
            learning.second([_mixed(next(source)) for _ in range(_PER_S)])
            verdict = learning.learner.counts.verdict
            if found["reported_s"] is None and verdict is not None and verdict.skewed > limit:
                found["reported_s"] = number + 1
                found["share"] = verdict.skewed
    return found


def _mixed(sample: Sample) -> Sample:
    """Return a sample whose feedback has its columns in reverse order, as after a mistake in one of two programs."""
    inputs = sample.inputs
    events = len(inputs.history_item) // 8
    values = np.frombuffer(inputs.history_feedback, "<f4").reshape(events, -1)[:, ::-1] if events else np.zeros(0, "<f4")
    return replace(sample, inputs=replace(inputs, history_feedback=np.ascontiguousarray(values).tobytes()))


def _show(report: dict[str, Any], console: Console) -> None:
    table = figure_table("Wrong labels and inputs (simulated users)", "")
    for group in ("flipped", "skew"):
        for name, value in report[group].items():
            shown = ", ".join(f"{key} {one:.4f}" for key, one in value.items()) if isinstance(value, dict) else str(value)
            table.add_row(f"{group} {name}".replace("_", " "), shown)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
