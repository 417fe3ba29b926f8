"""From a log to a run: the ranker, then the device model in its forms, for each seed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.samples import SampleConfig, Samples, build_samples
from pocketrank.cloud.data.schema import DataError, ImpressionLog
from pocketrank.cloud.data.split import KUAIRAND_UTC_OFFSET_H, day_of, days
from pocketrank.cloud.files import replacing, write_atomically
from pocketrank.cloud.models.full_ranker import FullRanker, FullRankerConfig
from pocketrank.cloud.models.presets import UpperConfig
from pocketrank.cloud.models.towers import TowerConfig
from pocketrank.cloud.training.device_model import DeviceModel, JointConfig, device_spec, predict, train_device_model
from pocketrank.cloud.training.evaluate import evaluate
from pocketrank.cloud.training.publish import publish
from pocketrank.cloud.training.ranker import StreamConfig, stream
from pocketrank.cloud.training.run import Run, RunError, RunRecord
from pocketrank.cloud.training.weights import load_weights, save_weights
from pocketrank.device.contract import FeatureSpec, SearchSpec

__all__ = ["REAL_TASKS", "REAL_WEIGHTS", "WORLD_CONFIG", "WORLD_TASKS", "WORLD_WEIGHTS", "TrainConfig", "train"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class TrainConfig:
    """All numbers of a training that are not the data's."""

    stream: StreamConfig = StreamConfig()
    """The full ranker."""
    device: JointConfig = JointConfig(epochs=3)
    """The device model alone: self-contained, and without feedback."""
    joint: JointConfig = JointConfig(epochs=1)
    """Both halves together, from the self-contained form on. One pass: ID embeddings learn rows by heart in a second."""
    search: SearchSpec | None = None
    """How the device looks for the best list; None takes the best next item."""
    no_feedback: bool = True
    """Also train the device model without feedback, for comparison."""
    threads: int = 1
    """Of torch. These models are small: a second thread gains little on an idle machine and costs tenfold on a busy one."""

    def of_size(self, upper: UpperConfig) -> TrainConfig:
        """The same training of a device model of another size."""
        return replace(self, device=replace(self.device, upper=upper), joint=replace(self.joint, upper=upper))

    def __post_init__(self) -> None:
        if self.device.upper != self.joint.upper:
            raise ValueError(f"Expected the same device model in both forms, got {self.device.upper} and {self.joint.upper}")


DEFAULT_TEST_SHARE = 0.1
"""Of the rows, at least, when nobody says where the test days begin."""
REAL_TASKS = ("click", "long_view", "like", "profile_enter")
REAL_WEIGHTS = {"long_view": 1.0, "like": 1.0}
WORLD_TASKS = ("effective_view", "like", "follow", "has_next")
WORLD_WEIGHTS = {"effective_view": 1.0, "like": 0.0, "follow": 0.0, "has_next": 0.0}
_WORLD_TOWERS = TowerConfig(item_width=4, side_width=4)
WORLD_CONFIG = TrainConfig(
    stream=StreamConfig(ranker=FullRankerConfig(item_width=4, user_width=4)),
    device=JointConfig(lower=_WORLD_TOWERS, epochs=4, learning_rate=8e-3),
    joint=JointConfig(lower=_WORLD_TOWERS, epochs=1, learning_rate=2e-3),
    search=SearchSpec(),
)
"""For the simulated world. Only here is it known whether a user stays, so only here is there a list search. Its sessions are
long and tell much: larger steps, which on KuaiRand would learn rows by heart. Its items and users have few impressions each and
tell most by their content: narrow ID embeddings.
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

    `test_from` is by default the latest day with a tenth of the rows on or after it.

    An interrupted training of the same data and numbers goes on after its last finished stage. `progress` gets a stage and the
    share of it that is done. Raises `DataError` for a log that cannot be trained on or has no row on one side of `test_from`,
    `RunError` when `out` holds a training of something else.
    """
    config = config or (WORLD_CONFIG if log.simulated else TrainConfig())
    torch.set_num_threads(config.threads)
    offset = 0 if log.simulated else KUAIRAND_UTC_OFFSET_H
    tasks, weights = (WORLD_TASKS, WORLD_WEIGHTS) if log.simulated else (REAL_TASKS, REAL_WEIGHTS)
    test_from = test_from or day_of(int(np.quantile(days(log), 1 - DEFAULT_TEST_SHARE, method="lower")))
    samples = build_samples(log, SampleConfig(tasks=tasks, utc_offset_h=offset, test_from=test_from))
    learn_until = samples.learn_until
    row_day = samples.event_day[samples.row_event]
    test = np.flatnonzero(row_day >= learn_until)
    if not len(test) or not len(_training_rows(samples, config.device)):
        span = f"{day_of(samples.first_day)} to {day_of(samples.first_day + samples.days - 1)}"
        warm_up = _warm_up_days(samples, config.device)
        expected = f"expected a first test day with rows before and after it, the first {warm_up} days aside"
        raise DataError(log.name, f"{expected}, got {test_from}; the log has {span}")
    seed_list = tuple(range(seed, seed + seeds))
    digest = log.digest()
    # sets of numbers that differ make another run; only more seeds may be added to one
    _same_or_new(out, {"data": digest, "test_from": test_from.isoformat(), "config": msgspec.to_builtins(config)})
    record = out / "run.json"
    record.unlink(missing_ok=True)

    spec = device_spec(samples, config.device, weights, config.search)
    statistics = ItemStatistics(samples)
    writer = SummaryWriter(str(out / "tensorboard"))
    try:
        for number in seed_list:
            _Seed(number, out / f"seed-{number}", samples, statistics, config, progress, writer).train(spec)
    finally:
        writer.close()
    version = _publish(
        out / f"seed-{seed_list[0]}", samples, statistics, spec, config, test, out / "published", simulated=log.simulated
    )
    if progress:
        progress("publish", 1.0)
    write_atomically(
        record,
        msgspec.json.format(
            msgspec.json.encode(
                RunRecord(
                    data=log.name,
                    data_digest=digest,
                    simulated=log.simulated,
                    test_from=test_from.isoformat(),
                    seeds=seed_list,
                    split_version=version,
                    spec=spec,
                    upper=config.device.upper,
                    config=msgspec.to_builtins(config),
                    versions={n: importlib.metadata.version(n) for n in ("pocketrank", "torch", "numpy", "onnxruntime")},
                )
            )
        ),
    )
    write_atomically(out / "metrics.json", msgspec.json.format(msgspec.json.encode(evaluate(out))))
    return Run.open(out)


def _warm_up_days(samples: Samples, config: JointConfig) -> int:
    """First days that a ranker scored before it had learned anything; none when it knew of what came before the log."""
    return 0 if (samples.event_day < 0).any() else config.warm_up_days


def _training_rows(samples: Samples, config: JointConfig) -> np.ndarray:
    """Rows that device models learn from: before the test days, with scores of a ranker that had learned something."""
    day, list_day = samples.event_day[samples.row_event], samples.list_day[samples.row_list]
    return np.flatnonzero((day < samples.learn_until) & (list_day >= _warm_up_days(samples, config)))


class _Seed:
    """One full training. A stage leaves weights and predictions on the test rows, and is skipped when they are there."""

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
        self.rows = _training_rows(samples, config.device)
        self.test = np.flatnonzero(samples.event_day[samples.row_event] >= samples.learn_until)
        folder.mkdir(parents=True, exist_ok=True)

    def train(self, spec: FeatureSpec) -> None:
        pxtr = self._ranker()
        own, joint = self.config.device, self.config.joint
        base = self._device(spec, pxtr, "self_contained", own)
        if self.config.no_feedback:
            self._device(spec, pxtr, "no_feedback", own, feedback=False)
        self._device(spec, pxtr, "split", joint, start=base)
        labels = self.samples.event_labels[self.samples.row_event[self.test]]
        server = pxtr[self.samples.row_list[self.test], self.samples.row_slot[self.test]]
        _save(self.folder / "labels.npy", labels)
        _save(self.folder / "server_score.npy", server)
        _save(self.folder / "users.npy", self.samples.event_user[self.samples.row_event[self.test]])
        _save(self.folder / "lists.npy", self.samples.row_list[self.test])

    def _ranker(self) -> np.ndarray:
        weights, scores = self.folder / "ranker.safetensors", self.folder / "pxtr.npy"
        if weights.exists() and scores.exists():
            return np.asarray(np.load(scores))
        result = stream(
            self.samples,
            self.statistics,
            self.config.stream,
            learn_until=self.samples.learn_until,
            seed=self.seed,
            progress=self._tell("ranker"),
            log=self._curve,
        )
        _save(scores, result.pxtr)
        save_weights(result.ranker, weights)
        return result.pxtr

    def _device(
        self,
        spec: FeatureSpec,
        pxtr: np.ndarray,
        name: str,
        config: JointConfig,
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
            progress=self._tell(name),
            log=lambda _, value, step: self._curve(f"{name}/loss", value, step),
        )
        _save(scores, predict(model, self.test))
        save_weights(model, weights)
        return model

    def _tell(self, stage: str) -> Callable[[float], None] | None:
        progress = self.progress
        return (lambda share: progress(f"seed {self.seed}: {stage}", share)) if progress else None

    def _curve(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(f"seed-{self.seed}/{name}", value, step)


def _publish(
    folder: Path,
    samples: Samples,
    statistics: ItemStatistics,
    spec: FeatureSpec,
    config: TrainConfig,
    test: np.ndarray,
    out: Path,
    *,
    simulated: bool,
) -> str:
    ranker = _loaded(FullRanker(config.stream.ranker, samples, statistics.width), folder / "ranker.safetensors")
    model = DeviceModel(samples, statistics, np.load(folder / "pxtr.npy"), spec, config.joint, split=True)
    if out.exists():
        shutil.rmtree(out)
    return publish(ranker, _loaded(model, folder / "split.safetensors"), statistics, test, out, simulated=simulated)


Model = TypeVar("Model", bound=nn.Module)


def _loaded(model: Model, path: Path) -> Model:
    load_weights(model, path)
    return model.eval()


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as part, part.open("wb") as file:  # numpy appends `.npy` to a path of another name
        np.save(file, array)


def _same_or_new(out: Path, what: dict[str, Any]) -> None:
    """Refuse to go on with a training of something else, or to write into a folder that is no run."""
    text = msgspec.json.encode(what, order="deterministic")
    mark, fingerprint = out / "started.json", hashlib.sha256(text).hexdigest()
    if mark.is_file():
        if fingerprint.encode() not in mark.read_bytes():
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
    write_atomically(mark, msgspec.json.format(msgspec.json.encode({"fingerprint": fingerprint, **what})))
