"""The published half of a run, which serving reads: tables as memory-mapped arrays, and two ONNX graphs.

::

    published.json           `PublishedRecord`
    <table>.npy              the arrays of `Published`
    ranker.onnx              user_row [1, Eu], history_row f16 [1, H, Ei], history_feedback [1, H, F], item_row f16 [1, N, E],
                             scene i64 [1, 1], hour i64 [1, 1]  ->  pxtr [1, N, K]
                             with features of the moment also statistics [1, N, S], sequence_row f16 [1, Q, T, Ei],
                             sequence_mask [1, Q, T]
    counts_KEY.npy           counts of all users' events by day, of such features
    user_tower.onnx          tower_row [1, Et], history_vector f16 [1, H, D], history_feedback [1, H, F],
                             history_mask bool [1, H]  ->  user_vector [1, D]

H and N are dynamic; a history is oldest first. The ranker accepts an H of 0. The tower needs an H of at least 1, so an empty
history is one row with mask 0. The F columns of feedback are those of `pocketrank.cloud.data.feedback.HISTORY_FEEDBACK`, and
after them the record's `actions`.

The part of the ranker that depends on an item alone is computed once for a run and published as `item_row`; in this
architecture it is a third of the multiplications. The rows are fp16: 500 of them are fetched from memory in 30 µs, and in fp32
in 51 (100,000 items; with a million 43 and 172). The part that depends on the user and the request alone is computed once for a
request. Item and user tables have a row for each known id in ascending order, after row 0 for everything unknown (its id is the
smallest int64).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.features import FeatureConfig

__all__ = ["Published", "PublishedError", "PublishedFeatures", "PublishedRecord", "published_digest"]

_OPTIONAL = {"history_until_ms", "history_ms"}
"""Arrays that runs did not always have."""


class PublishedError(ValueError):
    """The published half of a run is missing or damaged. The message names the file."""


class PublishedFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """Features of the moment, and what their definition takes from the training's log."""

    config: FeatureConfig = FeatureConfig()
    means: tuple[float, ...] = ()
    """Mean of each column of the history's feedback."""
    days: tuple[int, ...] = ()
    """Days of the counts, from 1 January 1970 in the run's time zone."""
    until_ms: int = 0
    """Time of the last event that they count."""


class PublishedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Names and sizes that give the arrays their meaning."""

    split_version: str
    tasks: tuple[str, ...]
    history_max: int
    """Number of a user's last events that the ranker sees."""
    tower_history_max: int
    """Number of a user's last events that the user tower sees."""
    scenes: int
    """Scene codes are 0 (unknown) to scenes - 1; code = scene + 1."""
    float_names: tuple[str, ...]
    """Columns of `item_float`, raw units, as pages carry them."""
    category_names: tuple[str, ...]
    """Columns of `item_category`."""
    numbering: str = ""
    """Name of the codes in `item_category` (`pocketrank.cloud.data.category_codes`); empty where they have none."""
    simulated: bool
    """Whether the log is from a simulation and not from real users."""
    ranker: bool = True
    """Whether there is a ranker. Without one the device model learned from scores that the team's own server makes."""
    time_zone: str = "UTC"
    """IANA name of the zone whose hours are those of the ranker's training data."""
    actions: tuple[str, ...] = ()
    """Names of the app's own actions, and of the labels that features of the moment need. Each is one more column of
    `history_feedback`, 0 or 1."""
    features: PublishedFeatures = PublishedFeatures()


def published_digest(folder: Path) -> str:
    """Return what tells the published run in `folder` from all others: 32 hexadecimal digits. Raises `PublishedError`."""
    digest = blake2b(digest_size=16)
    try:
        for name in ("published.json", "ranker.onnx", "user_tower.onnx"):
            if (folder / name).exists():
                digest.update((folder / name).read_bytes())
    except OSError as error:
        raise PublishedError(f"Expected the published half of a run, got: {error} - at {folder}") from error
    return digest.hexdigest()


@dataclass(frozen=True)
class Published:
    """Arrays of I items and U users, both with row 0 for the unknown."""

    item_id: NDArray[np.int64]  # [I]
    item_row: NDArray[np.float16]  # [I, E] input of the ranker for a candidate
    item_identity: NDArray[np.float16]  # [I, Ei] input of the ranker for an item of the history
    item_vector: NDArray[np.float16]  # [I, D]
    item_float: NDArray[np.float32]  # [I, len(float_names)]
    item_category: NDArray[np.int32]  # [I, len(category_names)]
    item_author: NDArray[np.int64]  # [I] id as the log has it, 0 = unknown
    item_upload_ms: NDArray[np.int64]  # [I], the smallest int64 = unknown
    item_popularity: NDArray[np.float32]  # [I] smoothed rate of the first task, for unknown users
    user_id: NDArray[np.int64]  # [U]
    user_row: NDArray[np.float32]  # [U, Eu]
    tower_row: NDArray[np.float32]  # [U, Et]
    history_item: NDArray[np.int32]  # [U, H] index into the item tables, oldest first, 0 = padding at the front
    history_feedback: NDArray[np.float32]  # [U, H, F]
    history_until_ms: NDArray[
        np.int64
    ]  # [U] when the last event of the history happened; the smallest int64 = none, or unknown
    history_ms: NDArray[np.int64]  # [U, H] when each happened, 0 = before the log; without features of the moment [U, 0]
    counts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # by key [days, codes, width], see `features`

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays but the counts, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "counts"}

    def save(self, folder: Path, record: PublishedRecord) -> None:
        """Write the arrays and, last, the record."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, values in (self.arrays() | {f"counts_{key}": counts for key, counts in self.counts.items()}).items():
            np.save(folder / f"{name}.npy", values)
        (folder / "published.json").write_bytes(msgspec.json.format(msgspec.json.encode(record)))

    @classmethod
    def open(cls, folder: Path) -> tuple[Published, PublishedRecord]:
        """Map the arrays of `folder`. Raises `PublishedError`."""
        try:
            record = msgspec.json.decode((folder / "published.json").read_bytes(), type=PublishedRecord)

            def array(name: str) -> NDArray[Any]:
                values: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                return values

            names = [f.name for f in fields(cls) if f.name != "counts"]
            arrays = {name: array(name) for name in names if name not in _OPTIONAL or (folder / f"{name}.npy").exists()}
            counts = {key: array(f"counts_{key}") for key in record.features.config.shared}
            # A run of before has no such times. Its histories count as older than all feedback.
            users = len(arrays["user_id"])
            arrays.setdefault("history_until_ms", np.full(users, np.iinfo(np.int64).min))
            arrays.setdefault("history_ms", np.zeros((users, 0), np.int64))
        except (OSError, ValueError, msgspec.DecodeError) as error:
            raise PublishedError(f"Expected the published half of a run, got: {error} - at {folder}") from error
        return cls(**arrays, counts=counts), record
