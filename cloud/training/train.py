"""Training of a run from a log: for each seed the full ranker, then the device model in its forms."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from pocketrank.cloud.data.days import day_of, day_rows
from pocketrank.cloud.data.features import FeatureConfig
from pocketrank.cloud.data.log import Log
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.sample_stream import SampleStream, WindowConfig
from pocketrank.cloud.data.samples import SampleConfig, Samples
from pocketrank.cloud.data.schema import CATEGORIES, DataError
from pocketrank.cloud.files import write_atomically
from pocketrank.cloud.models.full_ranker import FullRanker, FullRankerConfig
from pocketrank.cloud.models.presets import UpperConfig
from pocketrank.cloud.models.towers import TowerConfig
from pocketrank.cloud.training import ranks
from pocketrank.cloud.training.device_model import (
    DeviceModel,
    DeviceModelConfig,
    DeviceTraining,
    device_spec,
    predict,
)
from pocketrank.cloud.training.evaluate import evaluate
from pocketrank.cloud.training.metrics import auc
from pocketrank.cloud.training.part import Part, train_part
from pocketrank.cloud.training.passes import Passes, held_out_rows, save_array, training_rows, validation_rows, warm_up_days
from pocketrank.cloud.training.profile import ProfileSample
from pocketrank.cloud.training.publish import ID_KINDS, gate_arrays, gate_rows, publish
from pocketrank.cloud.training.ranker import RankerTraining, RankerTrainingConfig
from pocketrank.cloud.training.registry import active_beside
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

    stream: RankerTrainingConfig | None = RankerTrainingConfig()
    """Training of the full ranker, in one pass over the stream of days. None: there is none, and the device model learns from
    the log's own scores."""
    device: DeviceModelConfig = DeviceModelConfig(epochs=3)
    """Training of the upper half alone: the self-contained form, and the model without feedback."""
    joint: DeviceModelConfig = DeviceModelConfig(epochs=1)
    """Joint training of both halves, which starts from the self-contained form. It has one epoch: ID embeddings overfit in a
    second."""
    search: SearchSpec | None = None
    """List search of the device; None ranks by the best next item."""
    no_feedback: bool = True
    """Whether to train the device model also without feedback, for comparison."""
    features: FeatureConfig = FeatureConfig()
    """Features of the moment, which the ranker has and, as far as they travel with pages, the device model."""
    parts: tuple[Part, ...] = ()
    """Parts of your own, which are trained after the ranker of the first seed."""
    windows: WindowConfig = WindowConfig()
    """How much of the log is in memory at a time."""
    threads: int = 1
    """Threads of torch. The models are small: a second thread gains little on an idle machine, and on a busy one it takes ten
    times as long."""

    def plain(self) -> dict[str, Any]:
        """Return all numbers by name, as plain values; a part of your own by its class and its config."""
        own = [{"use": f"{type(p).__module__}.{type(p).__qualname__}", **msgspec.to_builtins(p.config)} for p in self.parts]
        return {**msgspec.to_builtins(replace(self, parts=())), "parts": own}

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

    In `ranks.joined()` all processes call it, with a log and an `out` that they share.
    """
    config = config or (WORLD_CONFIG if log.simulated else TrainConfig())
    torch.set_num_threads(config.threads)
    progress = progress if ranks.is_first() else None

    # The data.
    test_from = test_from or _default_test_day(log)
    sample_config = SampleConfig(tasks=tuple(log.tasks), time_zone=log.time_zone, test_from=test_from, features=config.features)
    passes = Passes(SampleStream(log, sample_config, config.windows))
    stream = passes.stream
    tested = int(stream.day_rows[stream.facts.learn_until :].sum())
    if not tested or not passes.training_rows(config.device):
        span = f"{stream.day_of(0)} to {stream.day_of(stream.facts.days - 1)}"
        warm_up = warm_up_days(len(log.history) > 0, config.device)
        expected = f"expected a first test day with rows before and after it, not counting the first {warm_up} days"
        raise DataError(log.name, f"{expected}, got {test_from}; the log has {span}")

    if config.stream is None and config.features:
        raise DataError(log.name, "expected a recipe with a ranker for its features of the moment, got none")
    if config.stream is None and (lacking := [f"pxtr_{task}" for task in log.tasks if f"pxtr_{task}" not in log.scores]):
        message = "expected scores of the log's own, because the recipe has no ranker, got no such column"
        raise DataError(log.name, message, column=lacking[0])

    # The folder. Its fingerprint does not contain the seeds, because more seeds may be added to a run.
    digest = log.digest()
    plain = config.plain()
    record = out / "run.json"
    if ranks.is_first():
        _same_or_new(out, {"data": digest, "test_from": test_from.isoformat(), "config": plain})
        record.unlink(missing_ok=True)
    ranks.barrier()

    # The models of each seed.
    spec = device_spec(stream.facts, config.device, log.tasks, config.search)
    writer = SummaryWriter(str(out / "tensorboard")) if ranks.is_first() else None
    trainings = [
        _Seed(number, out / f"seed-{number}", passes, config, progress, writer) for number in range(seed, seed + seeds)
    ]
    try:
        for i, training in enumerate(trainings):
            training.train(spec, () if i else config.parts)
    finally:
        if writer:
            writer.close()

    if not ranks.is_first():
        ranks.barrier()
        return Run.open(out)

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
            config=plain,
            versions={n: importlib.metadata.version(n) for n in ("pocketrank", "torch", "numpy", "onnxruntime")},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            parent=active_beside(out),
        ),
    )
    metrics = evaluate(out)
    _write_json(out / "metrics.json", metrics)
    _write_hyperparameters(out / "tensorboard", plain, metrics["models"])
    ranks.barrier()
    return Run.open(out)


def _write_hyperparameters(folder: Path, config: dict[str, Any], models: dict[str, Any]) -> None:
    """Write the numbers of the training beside its metrics, so that TensorBoard compares runs by them."""

    def flat(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{path}{name}.")
            else:
                yield path + name, value if isinstance(value, bool | int | float | str) else str(value)

    found = {
        f"{model}/{task}/{metric}": values[metric]
        for model, tasks in models.items()
        for task, values in tasks.items()
        for metric in ("auc", "logloss")
        if values[metric] is not None
    }
    with SummaryWriter(str(folder)) as writer:
        writer.add_hparams(dict(flat(config)), found, run_name=".")


def _default_test_day(log: Log) -> date:
    """Return the latest day with at least `DEFAULT_TEST_SHARE` of the rows on or after it."""
    day, rows = day_rows(log.parts(columns=("impression_ms",)), log.time_zone)
    before = int((1 - DEFAULT_TEST_SHARE) * (rows.sum() - 1))
    return day_of(int(day[np.searchsorted(np.cumsum(rows), before, "right")]))


class _Seed:
    """Training of one seed. Each stage writes weights and predictions on the test rows; a stage that has both is skipped."""

    def __init__(
        self,
        seed: int,
        folder: Path,
        passes: Passes,
        config: TrainConfig,
        progress: Progress | None,
        writer: SummaryWriter | None,
    ) -> None:
        """`writer` is of the first process alone."""
        self.seed, self.folder, self.passes = seed, folder, passes
        self.config, self.progress, self.writer = config, progress, writer
        folder.mkdir(parents=True, exist_ok=True)
        self._curves: list[dict[str, Any]] = []

    def train(self, spec: FeatureSpec, parts: Sequence[Part] = ()) -> None:
        """Train the models of the seed, and parts of a user's own after the ranker."""
        config = self.config
        if config.stream is not None:
            self._ranker(config.stream)
        for part in parts if ranks.is_first() else ():
            self._part(part)
        self_contained = self._device(spec, "self_contained", config.device)
        if config.no_feedback:
            self._device(spec, "no_feedback", config.device, feedback=False)
        self._device(spec, "split", config.joint, start=self_contained)
        # What `evaluate` compares the predictions with.
        tests = [self._test_columns(samples) for samples, _ in self.passes.windows(self._pxtr)]
        lists = np.cumsum([0, *(test["lists"].max(initial=-1) + 1 for test in tests)])
        for test, first in zip(tests, lists, strict=False):
            test["lists"] = test["lists"] + first
        for name in tests[0] if ranks.is_first() else ():
            save_array(self.folder / f"{name}.npy", np.concatenate([test[name] for test in tests]))

    def _test_columns(self, samples: Samples) -> dict[str, np.ndarray]:
        rows = held_out_rows(samples)
        event, lists = samples.row_event[rows], samples.row_list[rows]
        return {
            "labels": samples.event_labels[event],
            "server_score": samples.event_pxtr[event],
            "users": samples.event_user[event],
            "lists": lists,
            # By which a report groups the rows: days since 1970, and how many earlier events of the user there are.
            "days": samples.day_start[samples.event_day[event]] + samples.first_day,
            "history": samples.event_place[event],
        }

    def publish(self, spec: FeatureSpec, out: Path, *, simulated: bool) -> str:
        """Write the cloud half of the trained models into `out`, in place of an earlier one. Returns the split version."""
        config, stream = self.config, self.passes.stream
        latest = stream.new_latest()
        if out.exists():
            shutil.rmtree(out)
        test = 0
        chosen = gate_rows(int(stream.day_rows[stream.facts.learn_until :].sum()))
        model: DeviceModel | None = None
        ranker: FullRanker | None = None
        gates = []
        profile = ProfileSample(stream.facts)
        for samples, statistics in self.passes.windows(self._pxtr, latest):
            profile.add(samples, training_rows(samples, config.device))
            if model is None:
                model = DeviceModel(samples, statistics, spec, config.joint, split=True)
                load_weights(model, self.folder / "split.safetensors")
                model.eval()
                if config.stream is not None:
                    ranker = FullRanker(config.stream.ranker, samples, statistics.width)
                    load_weights(ranker.eval(), self.folder / "ranker.safetensors")
            rows = held_out_rows(samples)
            mine = rows[chosen[(chosen >= test) & (chosen < test + len(rows))] - test]
            test += len(rows)
            if len(mine):
                model.enter(samples, statistics)
                gates.append(gate_arrays(model, mine))
        assert model is not None
        stream = self.passes.stream
        return publish(
            ranker,
            model,
            statistics,
            latest,
            gates,
            out,
            simulated=simulated,
            last_events=stream.last_events(),
            log=stream.log,
            profile=profile.profile(stream.log.ids_of((*ID_KINDS, CATEGORIES))),
        )

    @property
    def _pxtr(self) -> Path | None:
        return None if self.config.stream is None else self.folder / "pxtr"

    def _part(self, part: Part) -> None:
        name = type(part).__name__
        train_part(
            part,
            {
                "data": self.passes.stream.log.digest(),
                "test": self.passes.stream.facts.learn_until,
                "ranker": self.config.stream,
            },
            passes=self.passes,
            pxtr=self._pxtr,
            out=self.folder.parent,
            seed=self.seed,
            progress=self._stage_progress(name),
            log_scalar=lambda curve, value, step: self._log_scalar(f"{name}/{curve}", value, step),
        )
        self._write_curves()

    def _ranker(self, config: RankerTrainingConfig) -> None:
        weights, scores = self.folder / "ranker.safetensors", self.folder / "pxtr"
        if weights.exists():
            return

        def training(samples: Samples, statistics: ItemStatistics) -> RankerTraining:
            return RankerTraining(
                samples,
                statistics,
                config,
                learn_until=samples.learn_until,
                seed=self.seed,
                rows=int(self.passes.stream.day_rows[: samples.learn_until].sum()),
                progress=self._stage_progress("ranker"),
                log=self._log_scalar,
            )

        trained = self.passes.train_ranker(training, scores)
        if ranks.is_first():
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

        def made(samples: Samples, statistics: ItemStatistics) -> DeviceModel:
            return DeviceModel(samples, statistics, spec, config, split=name == "split", feedback=feedback)

        if weights.exists() and scores.exists():
            model = made(*next(self.passes.windows(self._pxtr)))
            load_weights(model, weights)
            return model.eval()
        model = self._fit(made, name, config, start)
        predicted = self._predict(model, held_out_rows)
        if ranks.is_first():
            save_array(scores, predicted)
            save_weights(model, weights)
            self._write_curves()
        return model

    def _fit(
        self,
        made: Callable[[Samples, ItemStatistics], DeviceModel],
        name: str,
        config: DeviceModelConfig,
        start: DeviceModel | None,
    ) -> DeviceModel:
        """Train a device model for `config.epochs`, or until it no longer improves on the last training days."""
        model: DeviceModel | None = None
        training: DeviceTraining | None = None
        best, best_weights, since = -np.inf, dict[str, torch.Tensor](), 0
        for epoch in range(config.epochs):
            for samples, statistics in self.passes.windows(self._pxtr):
                if model is None or training is None:
                    model = made(samples, statistics)
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
                if len(rows := training_rows(samples, config)):
                    training.learn(rows)
            assert model is not None
            if not config.patience:
                continue
            reached = self._validate(model, name, epoch + 1)
            since = 0 if reached > best else since + 1
            if not since:
                best, best_weights = reached, {k: v.clone() for k, v in model.state_dict().items()}
            elif since >= config.patience:
                break
        assert model is not None
        if best_weights:
            model.load_state_dict(best_weights)
        return model.eval()

    def _validate(self, model: DeviceModel, name: str, epoch: int) -> float:
        """Return the mean AUC on the validation rows of the tasks that order a page, and log that of each."""
        labels = np.concatenate(
            [s.event_labels[s.row_event[validation_rows(s, model.config)]] for s, _ in self.passes.windows(self._pxtr)]
        )
        scores = self._predict(model, lambda samples: validation_rows(samples, model.config))
        known = {task: auc(y, p) for task, y, p in zip(model.spec.tasks, labels.T, scores.T, strict=True)}
        for task, value in known.items():
            if value is not None:
                self._log_scalar(f"{name}/validation_auc/{task}", value, epoch)
        weighted = [value for task, value in known.items() if value is not None and model.spec.task_weights.get(task)]
        return float(np.mean(weighted)) if weighted else 0.0

    def _predict(self, model: DeviceModel, chosen: Callable[[Samples], np.ndarray]) -> np.ndarray:
        """Return the probabilities [r, K] of the chosen rows of all windows."""
        found = []
        for samples, statistics in self.passes.windows(self._pxtr):
            if len(rows := chosen(samples)):
                model.enter(samples, statistics)
                found.append(predict(model, rows))
        return np.concatenate(found)

    def _stage_progress(self, stage: str) -> Callable[[float], None] | None:
        progress = self.progress
        return (lambda share: progress(f"seed {self.seed}: {stage}", share)) if progress else None

    def _log_scalar(self, name: str, value: float, step: int) -> None:
        if self.writer:
            self.writer.add_scalar(f"seed-{self.seed}/{name}", value, step)
        self._curves.append({"name": name, "step": step, "value": value})

    def _write_curves(self) -> None:
        """Write the curves of the stages so far, beside those of earlier calls."""
        path = self.folder / "curves.json"
        known = {curve["name"] for curve in self._curves}
        written = msgspec.json.decode(path.read_bytes()) if path.exists() else []
        old = [curve for curve in written if curve["name"] not in known]
        _write_json(path, [*old, *self._curves])


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
    if out.exists() and any(file.name != "log" for file in out.iterdir()):  # which `pocketrank train` has imported
        raise RunError(
            f"Expected an empty folder or an interrupted training, got other files - at {out}. Choose another --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_json(started, {"fingerprint": fingerprint, **what})
