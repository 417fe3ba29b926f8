"""Training of a run from a log: for each seed the full ranker, then the device model in its forms."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from pocketrank.cloud.data.days import day_of, day_rows
from pocketrank.cloud.data.latest_events import LatestEvents
from pocketrank.cloud.data.log import Log
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.samples import SampleConfig, Samples, SampleStream, WindowConfig
from pocketrank.cloud.data.schema import DataError
from pocketrank.cloud.files import replacing, write_atomically
from pocketrank.cloud.models.full_ranker import FullRanker, FullRankerConfig
from pocketrank.cloud.models.presets import UpperConfig
from pocketrank.cloud.models.towers import TowerConfig
from pocketrank.cloud.training.device_model import (
    DeviceModel,
    DeviceModelConfig,
    DeviceTraining,
    device_spec,
    predict,
)
from pocketrank.cloud.training.evaluate import evaluate
from pocketrank.cloud.training.publish import gate_arrays, gate_rows, publish
from pocketrank.cloud.training.ranker import RankerTraining, RankerTrainingConfig
from pocketrank.cloud.training.run import Run, RunError, RunRecord
from pocketrank.cloud.training.weights import load_weights, save_weights
from pocketrank.device.contract import FeatureSpec, SearchSpec

__all__ = [
    "WORLD_CONFIG",
    "TrainConfig",
    "train",
    "training_rows",
]

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class TrainConfig:
    """All numbers of a training that do not come from the data. Runs record them under the names of these fields."""

    stream: RankerTrainingConfig = RankerTrainingConfig()
    """Training of the full ranker, in one pass over the stream of days."""
    device: DeviceModelConfig = DeviceModelConfig(epochs=3)
    """Training of the upper half alone: the self-contained form, and the model without feedback."""
    joint: DeviceModelConfig = DeviceModelConfig(epochs=1)
    """Joint training of both halves, which starts from the self-contained form. It has one epoch: ID embeddings overfit in a
    second."""
    search: SearchSpec | None = None
    """List search of the device; None ranks by the best next item."""
    no_feedback: bool = True
    """Whether to train the device model also without feedback, for comparison."""
    windows: WindowConfig = WindowConfig()
    """How much of the log is in memory at a time."""
    threads: int = 1
    """Threads of torch. The models are small: a second thread gains little on an idle machine, and on a busy one it takes ten
    times as long."""

    def of_size(self, upper: UpperConfig) -> TrainConfig:
        """Return the same training of a device model of another size."""
        return replace(self, device=replace(self.device, upper=upper), joint=replace(self.joint, upper=upper))

    def __post_init__(self) -> None:
        if self.device.upper != self.joint.upper:
            raise ValueError(f"Expected the same device model in both forms, got {self.device.upper} and {self.joint.upper}")


DEFAULT_TEST_SHARE = 0.1
"""Smallest share of the rows that are test rows when `test_from` is not given."""
_WORLD_TOWERS = TowerConfig(item_width=4, side_width=4)
WORLD_CONFIG = TrainConfig(
    stream=RankerTrainingConfig(ranker=FullRankerConfig(item_width=4, user_width=4)),
    device=DeviceModelConfig(lower=_WORLD_TOWERS, epochs=4, learning_rate=8e-3),
    joint=DeviceModelConfig(lower=_WORLD_TOWERS, epochs=1, learning_rate=2e-3),
    search=SearchSpec(),
)
"""Training on a simulated world. Its labels alone include whether a user stays, so it alone has a list search. Its sessions are
long and informative, which allows for larger steps; on KuaiRand these would overfit. Its items and users have few impressions
each and are described best by their content, so that the ID embeddings are narrow.
"""


def train(
    log: Log,
    *,
    out: Path,
    test_from: date | None = None,
    seeds: int = 3,
    seed: int = 0,
    config: TrainConfig | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train on the days of `log` before `test_from`, once per seed, into the folder `out`.

    `test_from` is by default the latest day with at least a tenth of the rows on or after it. An interrupted training of the
    same data and numbers continues after its last finished stage. `progress` receives the name of a stage and the share of it
    that is done, 0 to 1. Raises `DataError` for a log that cannot be trained on, or that has no row on one side of `test_from`,
    and `RunError` if `out` holds something else.
    """
    config = config or (WORLD_CONFIG if log.simulated else TrainConfig())
    torch.set_num_threads(config.threads)

    # The data.
    test_from = test_from or _default_test_day(log)
    sample_config = SampleConfig(tasks=tuple(log.tasks), time_zone=log.time_zone, test_from=test_from)
    passes = Passes(SampleStream(log, sample_config, config.windows))
    stream = passes.stream
    tested = int(stream.day_rows[stream.learn_until :].sum())
    if not tested or not passes.training_rows(config.device):
        span = f"{stream.day_of(0)} to {stream.day_of(stream.days - 1)}"
        warm_up = _warm_up_days(len(log.history) > 0, config.device)
        expected = f"expected a first test day with rows before and after it, not counting the first {warm_up} days"
        raise DataError(log.name, f"{expected}, got {test_from}; the log has {span}")

    # The folder. Its fingerprint does not contain the seeds, because more seeds may be added to a run.
    digest = log.digest()
    _same_or_new(out, {"data": digest, "test_from": test_from.isoformat(), "config": msgspec.to_builtins(config)})
    record = out / "run.json"
    record.unlink(missing_ok=True)

    # The models of each seed.
    spec = device_spec(stream, config.device, log.tasks, config.search)
    writer = SummaryWriter(str(out / "tensorboard"))
    trainings = [
        _Seed(number, out / f"seed-{number}", passes, config, progress, writer) for number in range(seed, seed + seeds)
    ]
    try:
        for training in trainings:
            training.train(spec)
    finally:
        writer.close()

    # The record is written after everything that it describes: without it the run is unfinished.
    version = trainings[0].publish(spec, out / "published", simulated=log.simulated)
    if progress:
        progress("publish", 1.0)
    _write_json(
        record,
        RunRecord(
            data=log.name,
            data_digest=digest,
            simulated=log.simulated,
            test_from=test_from.isoformat(),
            seeds=tuple(training.seed for training in trainings),
            split_version=version,
            spec=spec,
            upper=config.device.upper,
            config=msgspec.to_builtins(config),
            versions={n: importlib.metadata.version(n) for n in ("pocketrank", "torch", "numpy", "onnxruntime")},
        ),
    )
    _write_json(out / "metrics.json", evaluate(out))
    return Run.open(out)


def _default_test_day(log: Log) -> date:
    """Return the latest day with at least `DEFAULT_TEST_SHARE` of the rows on or after it."""
    day, rows = day_rows(log.parts(), log.time_zone)
    before = int((1 - DEFAULT_TEST_SHARE) * (rows.sum() - 1))
    return day_of(int(day[np.searchsorted(np.cumsum(rows), before, "right")]))


def _warm_up_days(has_history: bool, config: DeviceModelConfig) -> int:
    """Return the number of first days that the ranker scored before it had learned enough; 0 for a log with history."""
    return 0 if has_history else config.warm_up_days


def training_rows(samples: Samples, config: DeviceModelConfig) -> np.ndarray:
    """Return the rows [r] that device models learn from: those before the test days and after the ranker's warm-up."""
    day, list_day = samples.event_day[samples.row_event], samples.list_day[samples.row_list]
    return np.flatnonzero((day < samples.learn_until) & (list_day >= _warm_up_days(samples.has_history, config)))


def _test_rows(samples: Samples) -> np.ndarray:
    return np.flatnonzero(samples.event_day[samples.row_event] >= samples.learn_until)


class Passes:
    """Passes over the windows of a log. A log of one window stays in memory from one pass to the next."""

    def __init__(self, stream: SampleStream) -> None:
        self.stream = stream
        self._only: tuple[Samples, ItemStatistics] | None = None
        spans = stream.spans()
        span = next(spans)
        if span.end == stream.days and span.shards == 1:
            samples = span.build(0)
            self._only = samples, ItemStatistics(samples)

    def training_rows(self, config: DeviceModelConfig) -> int:
        """Return the number of training rows of device models, about where the log is large."""
        if self._only is not None:
            return len(training_rows(self._only[0], config))
        warm_up = _warm_up_days(len(self.stream.log.history) > 0, config)
        return int(self.stream.day_rows[warm_up : self.stream.learn_until].sum())

    def windows(self, pxtr: Path | None = None, latest: LatestEvents | None = None) -> Iterator[tuple[Samples, ItemStatistics]]:
        """Return the windows in the order of time, with the statistics of the items.

        `pxtr` is the folder of the scores of the rows, by window. Into `latest` go the events of each window that was used.
        """
        if self._only is not None:
            samples, statistics = self._only
            yield (samples if pxtr is None else samples.with_pxtr(np.load(pxtr / "0-0.npy"))), statistics
            if latest is not None:
                latest.add(samples.fresh())
            return
        statistics = None
        for span in self.stream.spans(latest):
            for shard in range(span.shards):
                samples = span.build(shard)
                if pxtr is not None:
                    samples = samples.with_pxtr(np.load(pxtr / f"{span.index}-{shard}.npy"))
                if statistics is None:
                    statistics = ItemStatistics(samples)
                if shard == 0:
                    statistics.enter(samples if span.shards == 1 else None)
                if len(samples.row_event):  # few users may leave a shard empty
                    yield samples, statistics
                statistics.add(samples)
                span.done(samples)
        if statistics is not None:
            statistics.enter(None)

    def train_ranker(self, training: Callable[[Samples, ItemStatistics], RankerTraining], pxtr: Path) -> RankerTraining:
        """Train a ranker on all windows, and write the scores [R, K] of the rows of each into the folder `pxtr`."""
        pxtr.mkdir(exist_ok=True)
        made: RankerTraining | None = None
        if self._only is not None:
            made = training(*self._only)
            _save(pxtr / "0-0.npy", _row_scores(self._only[0], made.window(self._only[0])[0]))
            return made
        statistics: ItemStatistics | None = None
        for span in self.stream.spans():
            for shard in range(span.shards):
                samples = span.build(shard)
                if made is None or statistics is None:
                    statistics = ItemStatistics(samples)
                    made = training(samples, statistics)
                if shard == 0:
                    statistics.enter(samples if span.shards == 1 else None)
                scores = made.window(samples)[0] if span.shards == 1 else made.score(samples, span.first)
                _save(pxtr / f"{span.index}-{shard}.npy", _row_scores(samples, scores))
                if span.shards == 1:
                    statistics.add(samples)
                    span.done(samples)
            for shard in range(span.shards if span.shards > 1 else 0):
                # All shards were scored before any is learned.
                samples = span.build(shard)
                made.learn(samples)
                statistics.add(samples)
                span.done(samples)
        assert made is not None
        return made


def _row_scores(samples: Samples, scores: np.ndarray) -> np.ndarray:
    return np.asarray(scores[samples.row_list, samples.row_slot])


class _Seed:
    """Training of one seed. Each stage writes weights and predictions on the test rows; a stage that has both is skipped."""

    def __init__(
        self,
        seed: int,
        folder: Path,
        passes: Passes,
        config: TrainConfig,
        progress: Progress | None,
        writer: SummaryWriter,
    ) -> None:
        self.seed, self.folder, self.passes = seed, folder, passes
        self.config, self.progress, self.writer = config, progress, writer
        folder.mkdir(parents=True, exist_ok=True)
        self._curves: list[dict[str, Any]] = []

    def train(self, spec: FeatureSpec) -> None:
        self._ranker()
        config = self.config
        self_contained = self._device(spec, "self_contained", config.device)
        if config.no_feedback:
            self._device(spec, "no_feedback", config.device, feedback=False)
        self._device(spec, "split", config.joint, start=self_contained)
        # What `evaluate` compares the predictions with.
        parts = [self._test_part(samples) for samples, _ in self.passes.windows(self.folder / "pxtr")]
        lists = np.cumsum([0, *(part["lists"].max(initial=-1) + 1 for part in parts)])
        for part, first in zip(parts, lists, strict=False):
            part["lists"] += first
        for name in parts[0]:
            _save(self.folder / f"{name}.npy", np.concatenate([part[name] for part in parts]))

    def _test_part(self, samples: Samples) -> dict[str, np.ndarray]:
        rows = _test_rows(samples)
        event, lists = samples.row_event[rows], samples.row_list[rows]
        columns = {"labels": samples.event_labels, "server_score": samples.event_pxtr, "users": samples.event_user}
        return {name: column[event] for name, column in columns.items()} | {"lists": lists}

    def publish(self, spec: FeatureSpec, out: Path, *, simulated: bool) -> str:
        """Write the cloud half of the trained models into `out`, in place of an earlier one. Returns the split version."""
        config, latest = self.config, self.passes.stream.new_latest()
        if out.exists():
            shutil.rmtree(out)
        test = 0
        chosen = gate_rows(int(self.passes.stream.day_rows[self.passes.stream.learn_until :].sum()))
        model: DeviceModel | None = None
        gates = []
        for samples, statistics in self.passes.windows(self.folder / "pxtr", latest):
            if model is None:
                model = DeviceModel(samples, statistics, spec, config.joint, split=True)
                load_weights(model, self.folder / "split.safetensors")
                ranker = FullRanker(config.stream.ranker, samples, statistics.width)
                load_weights(ranker, self.folder / "ranker.safetensors")
                model.eval()
            rows = _test_rows(samples)
            mine = rows[chosen[(chosen >= test) & (chosen < test + len(rows))] - test]
            test += len(rows)
            if len(mine):
                model.enter(samples, statistics)
                gates.append(gate_arrays(model, mine))
        assert model is not None
        return publish(ranker.eval(), model, statistics, latest, gates, out, simulated=simulated)

    def _ranker(self) -> None:
        weights, scores = self.folder / "ranker.safetensors", self.folder / "pxtr"
        if weights.exists():
            return

        def training(samples: Samples, statistics: ItemStatistics) -> RankerTraining:
            return RankerTraining(
                samples,
                statistics,
                self.config.stream,
                learn_until=samples.learn_until,
                seed=self.seed,
                rows=int(self.passes.stream.day_rows[: samples.learn_until].sum()),
                progress=self._stage_progress("ranker"),
                log=self._log_scalar,
            )

        trained = self.passes.train_ranker(training, scores)
        save_weights(trained.ranker, weights)
        self._write_curves()

    def _device(
        self,
        spec: FeatureSpec,
        name: str,
        config: DeviceModelConfig,
        *,
        feedback: bool = True,
        start: DeviceModel | None = None,
    ) -> DeviceModel:
        weights, scores = self.folder / f"{name}.safetensors", self.folder / f"{name}.npy"
        torch.manual_seed(self.seed)
        model: DeviceModel | None = None
        training: DeviceTraining | None = None
        done = weights.exists() and scores.exists()
        for _ in range(0 if done else config.epochs):
            for samples, statistics in self.passes.windows(self.folder / "pxtr"):
                if model is None:
                    model = DeviceModel(samples, statistics, spec, config, split=name == "split", feedback=feedback)
                    if start is not None:
                        model.upper.start_from(start.upper)
                    training = DeviceTraining(
                        model,
                        rows=self.passes.training_rows(config),
                        seed=self.seed,
                        progress=self._stage_progress(name),
                        log=lambda curve, value, step: self._log_scalar(f"{name}/{curve}", value, step),
                    )
                else:
                    model.enter(samples, statistics)
                assert training is not None
                if len(rows := training_rows(samples, config)):
                    training.learn(rows)
        predictions = []
        for samples, statistics in self.passes.windows(self.folder / "pxtr"):
            if model is None:  # finished before
                model = DeviceModel(samples, statistics, spec, config, split=name == "split", feedback=feedback)
                load_weights(model, weights)
                break
            if len(rows := _test_rows(samples)):
                model.enter(samples, statistics)
                predictions.append(predict(model, rows))
        assert model is not None
        if not done:
            _save(scores, np.concatenate(predictions))
            save_weights(model, weights)
            self._write_curves()
        return model.eval()

    def _stage_progress(self, stage: str) -> Callable[[float], None] | None:
        progress = self.progress
        return (lambda share: progress(f"seed {self.seed}: {stage}", share)) if progress else None

    def _log_scalar(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(f"seed-{self.seed}/{name}", value, step)
        self._curves.append({"name": name, "step": step, "value": value})

    def _write_curves(self) -> None:
        """Write the curves of the stages so far, beside those of earlier calls."""
        path = self.folder / "curves.json"
        known = {curve["name"] for curve in self._curves}
        written = msgspec.json.decode(path.read_bytes()) if path.exists() else []
        old = [curve for curve in written if curve["name"] not in known]
        _write_json(path, [*old, *self._curves])


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as part, part.open("wb") as file:  # numpy appends `.npy` to a path of another name
        np.save(file, array)


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, msgspec.json.format(msgspec.json.encode(value)))


def _same_or_new(out: Path, what: dict[str, Any]) -> None:
    """Prepare the folder `out` for a new training of `what`, or for the continuation of one. Raises `RunError`."""
    text = msgspec.json.encode(what, order="deterministic")
    started, fingerprint = out / "started.json", hashlib.sha256(text).hexdigest()
    if started.is_file():
        if fingerprint.encode() not in started.read_bytes():
            raise RunError(
                f"Expected the training that was started here, got other data or numbers - at {out}. Choose another --out."
            )
        for unfinished in out.rglob("*.part"):  # of a training that was killed while it wrote
            unfinished.unlink()
        return
    if out.exists() and any(out.iterdir()):
        raise RunError(
            f"Expected an empty folder or an interrupted training, got other files - at {out}. Choose another --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_json(started, {"fingerprint": fingerprint, **what})
