"""A run: everything one training wrote, in one folder.

::

    RUN/run.json                     what was trained on what and how; written last: a run without it is unfinished
    RUN/seed-<n>/<stage>.safetensors weights of each finished stage; a killed training goes on after the last one
    RUN/seed-<n>/<model>.npy         predictions on the test rows; their `labels.npy`, `users.npy` and `lists.npy` beside them
    RUN/metrics.json                 what `pocketrank.cloud.training.evaluate` makes of them
    RUN/published/                   the cloud half, ready to serve (`pocketrank.cloud.published.published`), from the first
    seed RUN/tensorboard/                 training curves

Weights are safetensors, never pickles.

Errors::

    RunError                   no run, an unfinished one, or one of another format
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pocketrank.cloud.models.presets import UpperConfig
from pocketrank.cloud.training.errors import RunError
from pocketrank.device.contract import FeatureSpec, Form

if TYPE_CHECKING:
    from pocketrank.cloud.models.reranker import UpperHalf

__all__ = ["Run", "RunError", "RunRecord"]

RUN_FORMAT = 2
"""1 had whole rows of items and another order of columns in the ranker."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is: enough to repeat it."""

    format: int = RUN_FORMAT
    data: str
    """Name of the log."""
    data_digest: str
    """SHA-256 of the log's tables."""
    simulated: bool
    """True when no real user is behind the log."""
    test_from: str
    """First test day, ISO."""
    seeds: tuple[int, ...]
    """One full training each; the first is the one that is published and exported."""
    split_version: str
    """Digest of the published lower half."""
    spec: FeatureSpec
    """Of the device model."""
    upper: UpperConfig
    """Of the device model."""
    config: dict[str, Any]
    """Every other number that went into the training."""
    versions: dict[str, str]
    """Of the libraries that matter."""


@dataclass(frozen=True)
class Run:
    """A finished run, opened."""

    folder: Path
    record: RunRecord

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open a finished run. Raises `RunError`."""
        path = folder / "run.json"
        if not path.is_file():
            raise RunError(
                f"Expected a finished run with run.json, got none - at {folder}. `pocketrank train --out` makes one."
            )
        try:
            record = msgspec.json.decode(path.read_bytes(), type=RunRecord)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RunError(f"Expected a run record, got: {error} - at {path}") from error
        if record.format != RUN_FORMAT:
            raise RunError(f"Expected run format {RUN_FORMAT}, got {record.format}: train it anew - at {path}")
        return cls(folder, record)

    @property
    def spec(self) -> FeatureSpec:
        """Feature spec of the device model."""
        return self.record.spec

    @property
    def published(self) -> Path:
        """Folder of the cloud half."""
        return self.folder / "published"

    def seed_folder(self, seed: int | None = None) -> Path:
        """Folder of one seed, the first by default."""
        return self.folder / f"seed-{self.record.seeds[0] if seed is None else seed}"

    def upper(self, form: Form, seed: int | None = None) -> UpperHalf:
        """The trained upper half in one form, in evaluation mode."""
        from pocketrank.cloud.models.reranker import UpperHalf  # with torch, which a server does not need
        from pocketrank.cloud.training.weights import load_weights  # torch: a server opens runs without it

        model = UpperHalf(self.record.upper, self.spec, split=form == "split")
        load_weights(model, self.seed_folder(seed) / f"{form}.safetensors", prefix="upper.")
        return model.eval()
