"""Training of a run from a log: for each seed the full ranker, then the device model in its forms."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from pocketrank.cloud.data.days import day_of, days
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.samples import SampleConfig, Samples, build_samples
from pocketrank.cloud.data.schema import DataError, ImpressionLog
from pocketrank.cloud.files import replacing, write_atomically
from pocketrank.cloud.models.full_ranker import FullRanker, FullRankerConfig
from pocketrank.cloud.models.presets import UpperConfig
from pocketrank.cloud.models.towers import TowerConfig
from pocketrank.cloud.training.device_model import DeviceModel, DeviceModelConfig, device_spec, predict, train_device_model
from pocketrank.cloud.training.evaluate import evaluate
from pocketrank.cloud.training.publish import publish
from pocketrank.cloud.training.ranker import RankerTrainingConfig, train_ranker
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
    log: ImpressionLog,
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
    test_from = test_from or day_of(int(np.quantile(days(log), 1 - DEFAULT_TEST_SHARE, method="lower")))
    samples = build_samples(log, SampleConfig(tasks=tuple(log.tasks), time_zone=log.time_zone, test_from=test_from))
    if not len(_test_rows(samples)) or not len(training_rows(samples, config.device)):
        span = f"{day_of(samples.first_day)} to {day_of(samples.first_day + samples.days - 1)}"
        warm_up = _warm_up_days(samples, config.device)
        expected = f"expected a first test day with rows before and after it, not counting the first {warm_up} days"
        raise DataError(log.name, f"{expected}, got {test_from}; the log has {span}")

    # The folder. Its fingerprint does not contain the seeds, because more seeds may be added to a run.
    digest = log.digest()
    _same_or_new(out, {"data": digest, "test_from": test_from.isoformat(), "config": msgspec.to_builtins(config)})
    record = out / "run.json"
    record.unlink(missing_ok=True)

    # The models of each seed.
    spec = device_spec(samples, config.device, log.tasks, config.search)
    statistics = ItemStatistics(samples)
    writer = SummaryWriter(str(out / "tensorboard"))
    trainings = [
        _Seed(number, out / f"seed-{number}", samples, statistics, config, progress, writer)
        for number in range(seed, seed + seeds)
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


def _warm_up_days(samples: Samples, config: DeviceModelConfig) -> int:
    """Return the number of first days that the ranker scored before it had learned enough; 0 for a log with history."""
    return 0 if (samples.event_day < 0).any() else config.warm_up_days


def training_rows(samples: Samples, config: DeviceModelConfig) -> np.ndarray:
    """Return the rows [r] that device models learn from: those before the test days and after the ranker's warm-up."""
    day, list_day = samples.event_day[samples.row_event], samples.list_day[samples.row_list]
    return np.flatnonzero((day < samples.learn_until) & (list_day >= _warm_up_days(samples, config)))


def _test_rows(samples: Samples) -> np.ndarray:
    return np.flatnonzero(samples.event_day[samples.row_event] >= samples.learn_until)


class _Seed:
    """Training of one seed. Each stage writes weights and predictions on the test rows; a stage that has both is skipped."""

    def __init__(
        self,
        seed: int,
        folder: Path,
        samples: Samples,
        statistics: ItemStatistics,
        config: TrainConfig,
        progress: Progress | None,
        writer: SummaryWriter,
    ) -> None:
        self.seed, self.folder, self.samples, self.statistics = seed, folder, samples, statistics
        self.config, self.progress, self.writer = config, progress, writer
        self.rows, self.test = training_rows(samples, config.device), _test_rows(samples)
        folder.mkdir(parents=True, exist_ok=True)

    def train(self, spec: FeatureSpec) -> None:
        pxtr = self._ranker()
        config, samples = self.config, self.samples
        self_contained = self._device(spec, pxtr, "self_contained", config.device)
        if config.no_feedback:
            self._device(spec, pxtr, "no_feedback", config.device, feedback=False)
        self._device(spec, pxtr, "split", config.joint, start=self_contained)
        # What `evaluate` compares the predictions with.
        event, lists = samples.row_event[self.test], samples.row_list[self.test]
        _save(self.folder / "labels.npy", samples.event_labels[event])
        _save(self.folder / "server_score.npy", pxtr[lists, samples.row_slot[self.test]])
        _save(self.folder / "users.npy", samples.event_user[event])
        _save(self.folder / "lists.npy", lists)

    def publish(self, spec: FeatureSpec, out: Path, *, simulated: bool) -> str:
        """Write the cloud half of the trained models into `out`, in place of an earlier one. Returns the split version."""
        samples, statistics, config = self.samples, self.statistics, self.config
        ranker = FullRanker(config.stream.ranker, samples, statistics.width)
        load_weights(ranker, self.folder / "ranker.safetensors")
        model = DeviceModel(samples, statistics, np.load(self.folder / "pxtr.npy"), spec, config.joint, split=True)
        load_weights(model, self.folder / "split.safetensors")
        if out.exists():
            shutil.rmtree(out)
        return publish(ranker.eval(), model.eval(), statistics, self.test, out, simulated=simulated)

    def _ranker(self) -> np.ndarray:
        weights, scores = self.folder / "ranker.safetensors", self.folder / "pxtr.npy"
        if weights.exists() and scores.exists():
            return np.asarray(np.load(scores))
        result = train_ranker(
            self.samples,
            self.statistics,
            self.config.stream,
            learn_until=self.samples.learn_until,
            seed=self.seed,
            progress=self._stage_progress("ranker"),
            log=self._log_scalar,
        )
        _save(scores, result.pxtr)
        save_weights(result.ranker, weights)
        return result.pxtr

    def _device(
        self,
        spec: FeatureSpec,
        pxtr: np.ndarray,
        name: str,
        config: DeviceModelConfig,
        *,
        feedback: bool = True,
        start: DeviceModel | None = None,
    ) -> DeviceModel:
        torch.manual_seed(self.seed)
        split = name == "split"
        model = DeviceModel(self.samples, self.statistics, pxtr, spec, config, split=split, feedback=feedback)
        weights, scores = self.folder / f"{name}.safetensors", self.folder / f"{name}.npy"
        if weights.exists() and scores.exists():
            load_weights(model, weights)
            return model.eval()
        if start is not None:
            model.upper.start_from(start.upper)
        train_device_model(
            model,
            self.rows,
            seed=self.seed,
            progress=self._stage_progress(name),
            log=lambda _, value, step: self._log_scalar(f"{name}/loss", value, step),
        )
        _save(scores, predict(model, self.test))
        save_weights(model, weights)
        return model

    def _stage_progress(self, stage: str) -> Callable[[float], None] | None:
        progress = self.progress
        return (lambda share: progress(f"seed {self.seed}: {stage}", share)) if progress else None

    def _log_scalar(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(f"seed-{self.seed}/{name}", value, step)


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
