"""The cloud half of a run as serving reads it: tables of rows as memory-mapped arrays, and two ONNX graphs.

::

    published.json           `PublishedRecord`
    <table>.npy              the arrays of `Published`
    ranker.onnx              user_row [1, Eu], history_row f16 [1, H, Ei], history_feedback [1, H, F], item_row f16 [1, N, E],
                             scene i64 [1, 1], hour i64 [1, 1]  ->  pxtr [1, N, K]
    user_tower.onnx          tower_row [1, Et], history_vector f16 [1, H, D], history_feedback [1, H, F],
                             history_mask bool [1, H]  ->  user_vector [1, D]

H and N are dynamic; a history is oldest first. The ranker takes H of 0, the tower takes at least 1, and one row with mask 0 for
an empty history. F = len(history_feedback names), in the order of `pocketrank.cloud.data.feedback.HISTORY_FEEDBACK`.

What depends on an item alone is computed once a run and published as its `item_row`: of the architecture here, a third of the
multiplications. It is fp16, of which 500 rows are fetched from memory in 30 µs and fp32 ones in 51 (100,000 items; of a million
43 and 172). What depends on the user and the request alone is computed once a request. Item and user tables have one row per
known id in ascending order of id, after a row 0 for everything unknown (its id is the smallest int64).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["Published", "PublishedError", "PublishedRecord"]


class PublishedError(ValueError):
    """The published half of a run is missing or damaged. The message names the file."""


class PublishedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the arrays mean."""

    split_version: str
    tasks: tuple[str, ...]
    history_max: int
    """Events of a user's past that the ranker sees."""
    tower_history_max: int
    """The latest of them, which the user tower sees."""
    scenes: int
    """Scene codes are 0 (unknown) to scenes - 1; code = scene + 1."""
    float_names: tuple[str, ...]
    """Columns of `item_float`, raw units, as pages carry them."""
    category_names: tuple[str, ...]
    """Columns of `item_category`."""
    simulated: bool
    """True when no real user is behind the log."""
    utc_offset_h: int
    """Hours that the time of day, as the ranker learned it, is ahead of UTC."""


@dataclass(frozen=True)
class Published:
    """The arrays. I items, U users, both with the unknown row 0."""

    item_id: NDArray[np.int64]  # [I]
    item_row: NDArray[np.float16]  # [I, E] what the ranker takes of a candidate
    item_identity: NDArray[np.float16]  # [I, Ei] what it takes of an item of the past
    item_vector: NDArray[np.float16]  # [I, D]
    item_float: NDArray[np.float32]  # [I, len(float_names)]
    item_category: NDArray[np.int32]  # [I, len(category_names)]
    item_author: NDArray[np.int64]  # [I] id as the log has it, 0 = unknown
    item_upload_ms: NDArray[np.int64]  # [I], the smallest int64 = unknown
    item_popularity: NDArray[np.float32]  # [I] smoothed rate of the first task, for users of whom nothing is known
    user_id: NDArray[np.int64]  # [U]
    user_row: NDArray[np.float32]  # [U, Eu]
    tower_row: NDArray[np.float32]  # [U, Et]
    history_item: NDArray[np.int32]  # [U, H] index into the item tables, oldest first, 0 = padding at the front
    history_feedback: NDArray[np.float32]  # [U, H, F]

    def save(self, folder: Path, record: PublishedRecord) -> None:
        """Write the arrays and, last, the record."""
        folder.mkdir(parents=True, exist_ok=True)
        for f in fields(self):
            np.save(folder / f"{f.name}.npy", getattr(self, f.name))
        (folder / "published.json").write_bytes(msgspec.json.format(msgspec.json.encode(record)))

    @classmethod
    def open(cls, folder: Path) -> tuple[Published, PublishedRecord]:
        """Map the arrays of `folder`. Raises `PublishedError`."""
        try:
            record = msgspec.json.decode((folder / "published.json").read_bytes(), type=PublishedRecord)
            arrays = {f.name: np.load(folder / f"{f.name}.npy", mmap_mode="r", allow_pickle=False) for f in fields(cls)}
        except (OSError, ValueError, msgspec.DecodeError) as error:
            raise PublishedError(f"Expected the published half of a run, got: {error} - at {folder}") from error
        return cls(**arrays), record
