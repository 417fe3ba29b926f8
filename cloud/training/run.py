"""A run: everything one training wrote, in one folder.

::

    RUN/run.json                     `RunRecord`; written last: a run without it is unfinished
    RUN/started.json                 the data and the numbers of the training, by which an interrupted one is recognised
    RUN/seed-<n>/<stage>.safetensors weights of each finished stage; an interrupted training continues after the last one
    RUN/seed-<n>/<model>.npy         predictions on the test rows, in the order of `labels.npy`, `users.npy`, `lists.npy`,
                                     `days.npy` (since 1970) and `history.npy` (earlier events of the row's user)
    RUN/seed-<n>/curves.json         training curves: a list of `name`, `step` and `value`
    RUN/metrics.json                 the result of `pocketrank.cloud.training.evaluate`
    RUN/published/                   the cloud half of the first seed, ready to serve (`pocketrank.cloud.published.published`)
    RUN/tensorboard/                 training curves

Weights are safetensors, never pickles.

Errors::

    RunError                   the folder holds no run, an unfinished run, or a run of another format
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
"""Format 1 had whole item rows and another order of columns in the ranker."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Record of a run: everything that is needed to repeat it."""

    format: int = RUN_FORMAT
    data: str
    """Name of the log."""
    data_digest: str
    """SHA-256 of the log's tables."""
    simulated: bool
    """Whether the log is of a simulated world and not of real users."""
    test_from: str
    """First test day, as an ISO date."""
    seeds: tuple[int, ...]
    """Seeds, with one full training each; the first is published and exported."""
    split_version: str
    """Digest of the published lower half."""
    spec: FeatureSpec
    """Feature spec of the device model."""
    upper: UpperConfig
    """Widths of the device model."""
    config: dict[str, Any]
    """Every other number of the training, as plain values: `pocketrank.cloud.training.train.TrainConfig`."""
    versions: dict[str, str]
    """Versions of the libraries that matter, by name; that of `pocketrank` is the version of the code."""
    created: str | None = None
    """When the training ended, as an ISO time in UTC."""
    parent: str | None = None
    """Run of the same folder that was active then, which this one may replace."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

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
            raise RunError(f"Expected run format {RUN_FORMAT}, got {record.format} - at {path}. Train it again.")
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
        """Return the folder of one seed, by default the first."""
        return self.folder / f"seed-{self.record.seeds[0] if seed is None else seed}"

    def upper(self, form: Form, seed: int | None = None) -> UpperHalf:
        """Load the trained upper half in one form, in evaluation mode. Raises `RunError`."""
        # Imported here because both need torch, and a server opens runs without it.
        from pocketrank.cloud.models.reranker import UpperHalf
        from pocketrank.cloud.training.weights import load_weights

        model = UpperHalf(self.record.upper, self.spec, split=form == "split")
        load_weights(model, self.seed_folder(seed) / f"{form}.safetensors", prefix="upper.")
        return model.eval()
