"""What `benchmarks.quality` compares, and how each model is trained: on the same rows, by the same loss, from the same scores.

A *job* is one or two models of one seed that are trained one from the other; its predictions are kept in a folder under a name
that holds the digest of all that they depend on but our code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.command import make_work_folder
from benchmarks.errors import BenchmarkError
from benchmarks.quality.hand_features import TreeConfig, Trees, hand_features
from pocketrank.cloud.data.days import day_of, days
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.sample_stream import build_samples
from pocketrank.cloud.data.samples import SampleConfig, Samples
from pocketrank.cloud.data.schema import ImpressionLog
from pocketrank.cloud.files import replacing
from pocketrank.cloud.models.peers.dlcm import Dlcm
from pocketrank.cloud.models.peers.edgerec import EdgeRec
from pocketrank.cloud.models.peers.peer import Peer, PeerConfig
from pocketrank.cloud.models.peers.prm import Prm
from pocketrank.cloud.models.peers.setrank import SetRank
from pocketrank.cloud.models.peers.simple_dnn import SimpleDnn
from pocketrank.cloud.models.presets import PRESETS, UpperConfig
from pocketrank.cloud.training.device_model import DeviceModel, DeviceModelConfig, device_spec, predict, train_device_model
from pocketrank.cloud.training.ranker import RankerTraining, RankerTrainingConfig
from pocketrank.cloud.training.train import training_rows
from pocketrank.device.contract import FeatureSpec

__all__ = ["AT_REQUEST", "CURVES", "CURVE_SEEDS", "MODELS", "PEERS", "TUNABLE", "Data", "Quality", "TrainingJob", "jobs"]

REFRESHED_LIST = 6
"""Items of a page in the published system (Gong et al., CIKM 2022), after which the history is refreshed."""
VALIDATION_DAYS = 2
"""Last training days, which settings were chosen on; as many as a pseudo-list may span."""
CURVES = (0.25, 0.5)
"""Shares of the training users for the learning curve; all of them are the models themselves."""
CURVE_SEEDS = 2
"""First seeds that the learning curve is drawn for."""

RANKER = RankerTrainingConfig()
"""The full ranker that makes the server's scores and all models' inputs."""
OURS = UpperConfig(bins=8, cross_width=8, pairs=True, experts=4, expert_width=32, towers=(32,))
"""All of the published model's parts, at widths as small as those of the peers."""
BASE = DeviceModelConfig(upper=OURS, ahead_share=0.0)
"""Common to all networks. Here each row is scored right after the one before it, so nothing is learned of looking ahead."""


@dataclass(frozen=True)
class Setting:
    """What is tuned, with the same four tries for every model."""

    learning_rate: float
    """Of Adam, or of a tree."""
    rounds: int
    """Epochs, or trees."""


_OF_NETWORKS = tuple(Setting(rate, epochs) for rate in (1e-3, 3e-3) for epochs in (2, 4))
_OF_TREES = tuple(Setting(rate, trees) for rate in (0.03, 0.1) for trees in (100, 300))
_OF_SPLIT = tuple(Setting(rate, epochs) for rate in (1e-3, 3e-3) for epochs in (1, 2))

CHOSEN = {
    "self_contained": Setting(1e-3, 4),
    "split": Setting(3e-3, 1),
    "no_feedback": Setting(1e-3, 2),
    "simple_dnn": Setting(3e-3, 4),
    "edgerec": Setting(3e-3, 4),
    "prm": Setting(1e-3, 2),
    "dlcm": Setting(1e-3, 2),
    "setrank": Setting(1e-3, 2),
    "lambdamart": Setting(0.03, 100),
    "boosted_trees": Setting(0.03, 100),
    "boosted_trees@request": Setting(0.03, 100),
}
"""By `python -m benchmarks.quality --tune` on KuaiRand-Pure's slice: the best of four settings each by the mean AUC of long
view and like on the last two training days with seed 0. Test days took no part. An ablation has the setting of its whole model.
"""

_NETWORKS: dict[str, Callable[[PeerConfig, FeatureSpec], Peer]] = {
    "simple_dnn": SimpleDnn,
    "edgerec": EdgeRec,
    "prm": Prm,
    "dlcm": Dlcm,
    "setrank": SetRank,
}
_TREES = {"lambdamart": "lambdarank", "boosted_trees": "binary", "boosted_trees@request": "binary"}
PEERS = (*_NETWORKS, "lambdamart", "boosted_trees")
"""Models of others."""
AT_REQUEST = "boosted_trees@request"
"""The boosted trees without what happened since the request: what fresh feedback is worth on this log, to whatever model."""
TUNABLE = {
    **dict.fromkeys(("self_contained", "no_feedback", *_NETWORKS), _OF_NETWORKS),
    "split": _OF_SPLIT,
    **dict.fromkeys(("lambdamart", "boosted_trees"), _OF_TREES),
}
"""Settings that each model may try."""


@dataclass(frozen=True)
class _Pair:
    """Our model in both forms. A name that is None is not reported."""

    own: str | None
    split: str | None
    upper: UpperConfig = OURS
    feedback: bool = True
    client: bool = True
    """Whether it sees what only the client knows at that moment: all but the explicit actions."""
    users: float = 1.0
    """Share of the training users."""
    seeds: int | None = None
    """First seeds that it is trained for; all of them if None."""


_PAIRS = (
    _Pair("self_contained", "split"),
    _Pair("no_feedback", "split_no_watched", feedback=False),
    _Pair(None, "split_no_client", client=False),
    _Pair(None, "split_no_crossing", upper=replace(OURS, cross_width=0, bins=0)),
    _Pair(None, "split_tiny", upper=PRESETS["tiny"]),
    _Pair(None, "split_paper", upper=PRESETS["paper"], seeds=2),
)
_CURVE_PAIRS = tuple(_Pair(f"self_contained@{u}", f"split@{u}", users=u, seeds=CURVE_SEEDS) for u in CURVES)
_PAIR_OF = {name: pair for pair in (*_PAIRS, *_CURVE_PAIRS) for name in (pair.own, pair.split) if name}
_SERVER = ("server_score", "server_score_refreshed")
MODELS = (
    *_SERVER, "no_feedback", *PEERS, "self_contained", "split", "split_no_client", "split_no_crossing",
    "split_no_watched", "split_tiny", "split_paper",
)  # fmt: skip
"""In the order of the table."""


@dataclass(frozen=True)
class TrainingJob:
    """Models of one seed that are trained together; the earlier ones may be where the later ones start from."""

    seed: int
    models: tuple[str, ...]


def jobs(models: Sequence[str], seeds: Sequence[int]) -> list[TrainingJob]:
    """All that is to be trained for `models` after the rankers, those of a few seeds last. With both whole forms go the models
    of their learning curve, with boosted trees those without fresh feedback.
    """
    wanted = set(models)
    if wanted >= {"self_contained", "split"}:
        wanted |= {name for pair in _CURVE_PAIRS for name in (pair.own, pair.split) if name}
    trees = (AT_REQUEST,) if "boosted_trees" in wanted else ()
    out: dict[bool, list[TrainingJob]] = {True: [], False: []}
    for pair in (*_PAIRS, *_CURVE_PAIRS):
        names = tuple(name for name in (pair.own, pair.split) if name in wanted)
        out[pair.seeds is None] += [TrainingJob(seed, names) for seed in seeds[: pair.seeds] if names]
    return (
        out[True]
        + [TrainingJob(seed, (name,)) for name in (*PEERS, *trees) if name in (*models, *trees) for seed in seeds]
        + out[False]
    )


@dataclass(frozen=True)
class Data:
    """A log, cut twice: into lists as long as a request asks for, and into the shorter ones of a refreshed history."""

    name: str
    digest: str
    train_to: date
    test_from: date
    tasks: dict[str, float]
    samples: Samples
    refreshed: Samples
    statistics: ItemStatistics

    @classmethod
    def of(cls, log: ImpressionLog, train_to: date, test_from: date) -> Data:
        """Rows between the two days are nobody's. Raises `BenchmarkError` when a side has no row, `DataError`."""
        day = days(log)
        first, last = day_of(int(day.min())), day_of(int(day.max()))
        epoch = day_of(0)
        before, after = day <= (train_to - epoch).days, day >= (test_from - epoch).days
        if not before.any() or not after.any():
            raise BenchmarkError(log.name, f"rows up to {train_to} and from {test_from} on", f"rows of {first} to {last}")
        log = replace(log, impressions=log.impressions.filter(before | after))
        cut = SampleConfig(tasks=tuple(log.tasks), time_zone=log.time_zone, test_from=test_from)
        samples = build_samples(log, cut)
        if not len(training_rows(samples, BASE)):
            raise BenchmarkError(log.name, f"more training days up to {train_to}", f"rows of {first} to {last}")
        refreshed = build_samples(log, replace(cut, list_max=REFRESHED_LIST))
        return cls(log.name, log.digest(), train_to, test_from, log.tasks, samples, refreshed, ItemStatistics(samples))

    @property
    def days(self) -> NDArray[np.int64]:
        """Day of the log of each row."""
        day: NDArray[np.int64] = self.samples.event_day[self.samples.row_event]
        return day

    @property
    def test(self) -> NDArray[np.int64]:
        """Rows of the test days."""
        return np.flatnonzero(self.days >= self.samples.learn_until)


class PeerModel(DeviceModel):
    """A peer in the place of our upper half, in the same harness."""

    def __init__(
        self,
        peer: Callable[[FeatureSpec], Peer],
        samples: Samples,
        statistics: ItemStatistics,
        spec: FeatureSpec,
        config: DeviceModelConfig,
    ) -> None:
        super().__init__(samples, statistics, spec, config, split=False)
        self.peer = peer(spec)
        for name in ("item_floats", "feedback_floats", "context_floats"):
            getattr(self.peer, name).load_state_dict(getattr(self.upper, name).state_dict())
        del self.upper

    def logits(
        self, rows: Int[Tensor, " b"], ahead: Int[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, " b"] | None]:
        """Logits of the items that `rows` showed; a peer does not look `ahead`."""
        return self.peer(**self.arguments(rows))[:, 0], None


class Quality:
    """Trains jobs and keeps their predictions in a folder."""

    def __init__(self, data: Data, folder: Path) -> None:
        self.data = data
        self.spec = device_spec(data.samples, BASE, data.tasks)
        self.rows, self.test = training_rows(data.samples, BASE), data.test
        dates = [data.digest, data.train_to.isoformat(), data.test_from.isoformat()]
        self._base = [dates, msgspec.to_builtins(RANKER), msgspec.to_builtins(data.samples.config), REFRESHED_LIST]
        self.folder = folder
        make_work_folder(folder)

    def rank(self, seed: int) -> None:
        """Train the full ranker of a seed and keep its scores of each row, at request time and refreshed."""
        if self._read(seed, "ranker") is not None:
            return
        d, until = self.data, self.data.samples.learn_until
        rows = len(d.samples.row_event)
        training = RankerTraining(d.samples, d.statistics, RANKER, learn_until=until, seed=seed, rows=rows)
        scores = zip((d.samples, d.refreshed), training.window(d.samples, d.refreshed), strict=True)
        self._write(seed, "ranker", np.stack([pxtr[s.row_list, s.row_slot] for s, pxtr in scores]))

    def done(self, job: TrainingJob) -> bool:
        """Whether all predictions of a job are there."""
        return all(self._read(job.seed, name) is not None for name in job.models)

    def train(self, job: TrainingJob) -> None:
        """Train what is missing of a job. The ranker of its seed comes first."""
        if not self.done(job):
            for name, scores in self._train(job):
                self._write(job.seed, name, scores)

    def scores(self, seed: int, model: str) -> NDArray[np.float32] | None:
        """Return a model's scores of the test rows [T, K]; None where it was not trained for that seed."""
        if model in _SERVER:
            ranked = self._read(seed, "ranker")
            return None if ranked is None else ranked[_SERVER.index(model)][self.test]
        return self._read(seed, model)

    def tune(self, model: str, seed: int) -> Iterator[tuple[Setting, list[float]]]:
        """Yield each setting that is tried, and its AUC of each task on the last training days."""
        from sklearn.metrics import roc_auc_score

        after = (self.data.train_to - day_of(self.data.samples.first_day)).days + 1
        late = self.data.days[self.rows] >= after - VALIDATION_DAYS
        held_out, rows = self.rows[late], self.rows[~late]
        if not len(held_out) or not len(rows):
            raise BenchmarkError(self.data.name, f"training rows on and before the last {VALIDATION_DAYS} days", "too few days")
        labels = self._labels(held_out)
        base = None
        for setting in TUNABLE[model]:
            if model in _PAIR_OF:
                pair = _PAIR_OF[model]
                if model == pair.split and base is None:
                    base = self._ours(pair, CHOSEN["self_contained"], seed, rows)
                scores = predict(self._ours(pair, setting, seed, rows, base), held_out)
            else:
                scores = self._peer(model, setting, seed, rows, held_out)
            yield setting, [float(roc_auc_score(y, p)) for y, p in zip(labels.T, scores.T, strict=True)]

    def _train(self, job: TrainingJob) -> Iterator[tuple[str, NDArray[np.float32]]]:
        first, seed = job.models[0], job.seed
        if first not in _PAIR_OF:
            yield first, self._peer(first, CHOSEN[first], seed, self.rows, self.test)
            return
        pair = _PAIR_OF[first]
        rows = self._of_users(pair.users, seed)
        own = self._ours(pair, CHOSEN[self._tuned(pair)], seed, rows)
        if pair.own in job.models:
            yield pair.own, predict(own, self.test)
        if pair.split in job.models:
            yield pair.split, predict(self._ours(pair, CHOSEN["split"], seed, rows, own), self.test)

    @staticmethod
    def _tree_config(name: str, setting: Setting) -> TreeConfig:
        return TreeConfig(_TREES[name], setting.learning_rate, setting.rounds)

    @staticmethod
    def _tuned(pair: _Pair) -> str:
        return "self_contained" if pair.feedback else "no_feedback"

    def _ours(
        self, pair: _Pair, setting: Setting, seed: int, rows: NDArray[np.int64], start: DeviceModel | None = None
    ) -> DeviceModel:
        """Train the self-contained form, or the split form that begins where `start` is."""
        config = replace(BASE, upper=pair.upper, learning_rate=setting.learning_rate, epochs=setting.rounds)
        torch.manual_seed(seed)
        model = DeviceModel(
            self._scored(seed), self.data.statistics, self.spec, config, split=start is not None, feedback=pair.feedback
        )
        if start is not None:
            model.upper.start_from(start.upper)
        if not pair.client:
            _hide_client(model)
        train_device_model(model, rows, seed=seed)
        return model

    def _peer(
        self, name: str, setting: Setting, seed: int, rows: NDArray[np.int64], test: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Train a model of others and return its scores of the rows `test`."""
        s, statistics = self._scored(seed), self.data.statistics
        if name in _TREES:
            features = hand_features(s, statistics, fresh=name != AT_REQUEST)
            trees = Trees(self._tree_config(name, setting))
            trees.fit(features[rows], self._labels(rows), s.event_ms[s.row_event[rows]], seed)
            return trees.predict(features[test])
        config = replace(BASE, learning_rate=setting.learning_rate, epochs=setting.rounds)
        torch.manual_seed(seed)
        model = PeerModel(partial(_NETWORKS[name], PeerConfig()), s, statistics, self.spec, config)
        train_device_model(model, rows, seed=seed)
        return predict(model, test)

    def _labels(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        labels: NDArray[np.float32] = self.data.samples.event_labels[self.data.samples.row_event[rows]]
        return labels

    def _of_users(self, share: float, seed: int) -> NDArray[np.int64]:
        """Training rows of a share of the users, drawn again for each seed."""
        s = self.data.samples
        drawn = np.random.default_rng(seed).random(len(s.user_ids)) < share
        rows: NDArray[np.int64] = self.rows[drawn[s.event_user[s.row_event[self.rows]]]]
        return rows

    def _scored(self, seed: int) -> Samples:
        ranked = self._read(seed, "ranker")
        if ranked is None:
            raise BenchmarkError(str(self.folder), f"the ranker of seed {seed}", "none")
        return self.data.samples.with_pxtr(ranked[0])

    def _path(self, seed: int, model: str) -> Path:
        depends: list[Any] = [*self._base, seed]
        if model in _NETWORKS:
            depends += [msgspec.to_builtins(CHOSEN[model]), msgspec.to_builtins(PeerConfig()), msgspec.to_builtins(BASE)]
        elif model in _TREES:
            depends += [msgspec.to_builtins(self._tree_config(model, CHOSEN[model]))]
        elif model != "ranker":
            pair = _PAIR_OF[model]
            settings = [CHOSEN[self._tuned(pair)], CHOSEN["split"]]
            depends += [model, msgspec.to_builtins([pair, settings, BASE])]
        digest = sha256(msgspec.json.encode(depends, order="deterministic")).hexdigest()[:12]
        return self.folder / f"seed-{seed}" / f"{model}-{digest}.npy"

    def _read(self, seed: int, model: str) -> NDArray[np.float32] | None:
        try:
            scores: NDArray[np.float32] = np.load(self._path(seed, model), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return scores

    def _write(self, seed: int, model: str, scores: NDArray[np.float32]) -> None:
        path = self._path(seed, model)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, part.open("wb") as file:
            np.save(file, scores)


def _hide_client(model: DeviceModel) -> None:
    """Leave only the explicit actions of the feedback; no time and no place is known."""
    names = [f.name for f in model.spec.feedback_floats]
    explicit = torch.tensor([name in _EXPLICIT for name in names])
    model.event |= {
        "feedback": model.event["feedback"] * explicit,
        "ms": torch.zeros_like(model.event["ms"]),
        "position": torch.zeros_like(model.event["position"]),
    }
    model.row |= {"position": torch.zeros_like(model.row["position"])}


_EXPLICIT = frozenset({"click", "like", "follow", "comment", "share", "profile_enter", "dislike"})
"""Feedback that a client sends to the cloud anyway."""
