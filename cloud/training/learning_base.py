"""What a run leaves for learning on: the dense layers of the ranker, which increments do not change, and the rows that they
start from.

::

    published/learning/base.json            `BaseRecord`
    published/learning/ranker.safetensors   the dense layers
    published/learning/identity.npy         [I, Ei] f32 identities of items, the embedding of the item's own id in front
    published/learning/counts_GROUP.npy     [G, 2 K + 1] counts of item statistics by item, author and category
    published/item_statistics.npy           [I, S] f32 item statistics as of the end of the log
    published/item_encoder.onnx             rows of items that the run does not know

Errors::

    RunError                   the run has no base to learn on, or a damaged one
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.models.full_ranker import FullRanker, FullRankerConfig, RankerLayers, RankerWidths
from pocketrank.cloud.models.towers import LowerHalf
from pocketrank.cloud.published.published import Published, PublishedRecord
from pocketrank.cloud.training.errors import RunError
from pocketrank.cloud.training.item_encoder import export_item_encoder
from pocketrank.cloud.training.weights import load_weights

__all__ = ["BaseRecord", "LearningBase", "open_base", "save_base"]

_FOLDER = "learning"
_GROUPS = ("item", "author", "category")


class BaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of the ranker."""

    ranker: FullRankerConfig
    widths: RankerWidths


@dataclass(frozen=True)
class LearningBase:
    """A base, opened."""

    folder: Path
    """Of the published run."""
    published: Published
    record: PublishedRecord
    config: FullRankerConfig
    layers: RankerLayers
    """In evaluation mode, without gradients of their own."""
    identity: NDArray[np.float32]
    """[I, Ei]"""
    statistics: NDArray[np.float32]
    """[I, S]"""
    counts: tuple[NDArray[np.float64], ...]
    """[G, 2 K + 1] by item, author and category"""

    @property
    def item_width(self) -> int:
        """Width of the embedding of an item's own id, which is in front of its identity."""
        return self.config.item_width


def save_base(ranker: FullRanker, lower: LowerHalf, statistics: ItemStatistics, now: NDArray[np.float32], out: Path) -> None:
    """Write the base of a run into its folder `out` of what is published. `now` [I, S] are the statistics as of the end."""
    folder = out / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    layers = {
        name: value.contiguous()
        for name, value in ranker.state_dict().items()
        if name.partition(".")[0] not in ("identity", "user")
    }
    save_file(layers, folder / "ranker.safetensors")
    with torch.no_grad():
        identity = ranker.identity(torch.arange(len(now)))
    np.save(folder / "identity.npy", identity.numpy())
    np.save(out / "item_statistics.npy", now)
    for name, counts in zip(_GROUPS, statistics.totals(), strict=True):
        np.save(folder / f"counts_{name}.npy", counts)
    export_item_encoder(ranker, lower, now.shape[1], out / "item_encoder.onnx")
    record = BaseRecord(ranker=ranker.config, widths=ranker.widths)
    (folder / "base.json").write_bytes(msgspec.json.format(msgspec.json.encode(record)))


def open_base(published: Path) -> LearningBase:
    """Open the base of the run that is published in a folder. Raises `RunError`, `PublishedError`."""
    folder = published / _FOLDER
    try:
        record = msgspec.json.decode((folder / "base.json").read_bytes(), type=BaseRecord)

        def array(path: Path) -> NDArray[Any]:
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))

        identity, statistics = array(folder / "identity.npy"), array(published / "item_statistics.npy")
        counts = tuple(array(folder / f"counts_{name}.npy") for name in _GROUPS)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise RunError(
            f"Expected a run that can be learned on, got: {error} - at {folder}. `pocketrank train` makes one; train it again."
        ) from error
    layers = RankerLayers(record.ranker, record.widths)
    load_weights(layers, folder / "ranker.safetensors")
    layers.eval().requires_grad_(False)
    return LearningBase(published, *Published.open(published), record.ranker, layers, identity, statistics, counts)
