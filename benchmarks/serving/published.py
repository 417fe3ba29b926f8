"""A published run of any size with the architecture that is trained, made in seconds and without training.

The graphs are those of a small simulated world, exported by `pocketrank.cloud.training.publish` from models of default widths
with random weights: a graph takes rows, so it does not know how many items there are, and weights do not change how long it
runs. The tables are then redrawn: rows of the small world with noise on them, vectors in clusters as those of items of a
kind lie, users whose past lies in a few of the clusters, and a user tower that points where the past lies, so that an index
meets the queries it is made for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.serving.whole import WHOLE_ROWS, save_whole, sides_of
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.sample_stream import build_samples
from pocketrank.cloud.data.samples import SampleConfig
from pocketrank.cloud.models.full_ranker import FullRanker, FullRankerConfig
from pocketrank.cloud.models.towers import LowerHalf, TowerConfig
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.training.device_model import DeviceModel, DeviceModelConfig, device_spec
from pocketrank.cloud.training.publish import publish_window
from pocketrank.cloud.training.run import Run, RunRecord
from pocketrank.sdk_demo.world import World, WorldConfig

__all__ = ["WorldSize", "publish_small", "publish_world"]

_TASKS = ("effective_view", "like", "follow", "has_next", "long_view", "dislike")


@dataclass(frozen=True)
class WorldSize:
    """How large a published run is."""

    items: int
    """Items to retrieve from."""
    users: int = 10_000
    """Users with a past; what a request looks up does not depend on how many."""
    vector_width: int = 64
    """Of the vectors of items and users. At most that of a tower's hidden layer, 64."""
    history_max: int = 50
    """Events of each user's past."""
    items_per_cluster: int = 500
    """How many items are of a kind."""
    clusters_per_user: int = 3
    """Kinds of items that a user's past is of."""
    noise: float = 0.5
    """Standard deviation of a vector around the centre of its cluster, whose own is 1."""
    seed: int = 0
    """Of weights and tables."""


def publish_world(folder: Path, size: WorldSize, small: Run | None = None) -> Run:
    """A run in `folder`: `run.json` and `published/`, ready to serve. The weights of its models are random.

    `small` is one of `publish_small` with the same widths; sizes that share it share their graphs.
    """
    small = small or publish_small(folder, size)
    published, record = Published.open(small.published)
    tables = {name: np.array(values) for name, values in published.arrays().items()}
    if folder != small.folder:
        copytree(small.folder, folder)
    whole = np.load(small.published / WHOLE_ROWS)
    replace(published, **_enlarged(tables, whole, size, folder / "published")).save(folder / "published", record)
    return Run.open(folder)


def publish_small(folder: Path, size: WorldSize) -> Run:
    """Graphs, record and tables of a small world, of which `size` only gives the widths."""
    torch.manual_seed(size.seed)
    config = WorldConfig.load()
    replace = msgspec.structs.replace
    config = replace(config, users=replace(config.users, count=60), catalogue=replace(config.catalogue, items=400, authors=80))
    log = World(config).simulate_log(seed=size.seed)
    samples = build_samples(log, SampleConfig(tasks=_TASKS, history_max=size.history_max))
    statistics = ItemStatistics(samples)
    ranker = FullRanker(FullRankerConfig(), samples, statistics.width).eval()
    joint = DeviceModelConfig(lower=TowerConfig(vector_width=size.vector_width))
    weights = dict.fromkeys(_TASKS, 1.0)
    spec = device_spec(samples, joint, weights)
    model = DeviceModel(samples, statistics, spec, joint, split=True).eval()
    assert model.lower is not None
    _point_at_the_past(model.lower, size.vector_width)
    with torch.no_grad():
        users = ranker.user(torch.arange(1))
        rows = ranker.item_rows(torch.arange(len(samples.item_ids)), torch.from_numpy(statistics.as_of(samples.days)))
    version = publish_window(ranker, model, folder / "published", simulated=True)
    save_whole(ranker, users, rows, len(samples.history_feedback), folder / "published")
    record = RunRecord(
        data="tables drawn at random around a small simulated world",
        data_digest=log.digest(),
        simulated=True,
        test_from="1970-01-01",
        seeds=(size.seed,),
        split_version=version,
        spec=spec,
        upper=joint.upper,
        config={},
        versions={},
    )
    (folder / "run.json").write_bytes(msgspec.json.encode(record))
    return Run.open(folder)


def _point_at_the_past(lower: LowerHalf, width: int) -> None:
    """Weights with which a user's vector is about the mean of the vectors of the past."""
    with torch.no_grad():
        hidden, out = (layer for layer in lower.user_tower.modules() if isinstance(layer, torch.nn.Linear))
        for layer in (lower.event, hidden, out):
            layer.weight.mul_(0.1)
            layer.weight[:width, :width] += torch.eye(width)


def _enlarged(small: dict[str, NDArray[Any]], whole: NDArray[np.float32], size: WorldSize, folder: Path) -> dict[str, Any]:
    """Tables of `size` by name, from those of the small world and the `whole` rows [I, E] of its items; row 0 of each stays.
    Writes the whole rows into `folder`.
    """
    rng = np.random.default_rng(size.seed)
    rows = {
        "item": np.append(0, rng.integers(1, len(small["item_id"]), size.items)),
        "user": np.append(0, rng.integers(1, len(small["user_id"]), size.users)),
    }
    rows |= {"tower": rows["user"], "history": rows["user"]}
    small = small | {"item_whole": whole}
    tables = {name: table[rows[name.split("_")[0]]] for name, table in small.items()}
    for name in ("item_whole", "user_row", "tower_row", "item_popularity"):
        spread = 0.1 * small[name].std(0).astype(np.float32)
        tables[name][1:] += rng.standard_normal(tables[name][1:].shape, np.float32) * spread
    whole = tables.pop("item_whole")
    np.save(folder / WHOLE_ROWS, whole)
    tables["item_row"] = sides_of(whole, folder)
    tables["item_identity"] = whole[:, : tables["item_identity"].shape[1]].astype(np.float16)
    for name in ("item_id", "user_id"):
        tables[name][1:] = 1_000 + 3 * np.arange(len(tables[name]) - 1)
    clusters = max(1, size.items // size.items_per_cluster)
    of_item = rng.integers(0, clusters, size.items)
    tables["item_vector"] = _vectors(of_item, clusters, size, rng)
    by_cluster = np.argsort(of_item, kind="stable")
    start = np.searchsorted(of_item[by_cluster], np.arange(clusters + 1))
    liked = rng.integers(0, clusters, (size.users, size.clusters_per_user))
    cluster = np.take_along_axis(liked, rng.integers(0, size.clusters_per_user, (size.users, size.history_max)), 1)
    at = start[cluster] + (rng.random(cluster.shape) * (start[cluster + 1] - start[cluster])).astype(np.int64)
    tables["history_item"] = np.zeros((size.users + 1, size.history_max), np.int32)
    tables["history_item"][1:] = 1 + by_cluster[at.clip(0, size.items - 1)]
    events = small["history_feedback"][small["history_item"] > 0]
    tables["history_feedback"] = np.zeros((*tables["history_item"].shape, events.shape[1]), np.float32)
    tables["history_feedback"][1:] = events[rng.integers(0, len(events), cluster.shape)]
    return tables


def _vectors(of_item: NDArray[np.int64], clusters: int, size: WorldSize, rng: np.random.Generator) -> NDArray[np.float16]:
    """Vectors around their cluster's centre, each of the length that a tower's last layer gives it; row 0 is zeros."""
    centres = rng.standard_normal((clusters, size.vector_width), np.float32)
    vectors = centres[of_item] + size.noise * rng.standard_normal((size.items, size.vector_width), np.float32)
    vectors -= vectors.mean(1, keepdims=True)
    vectors /= vectors.std(1, keepdims=True)
    return np.concatenate([np.zeros((1, size.vector_width), np.float16), vectors.astype(np.float16)])
