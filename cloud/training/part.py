"""Parts: what a training makes beside the built-in models, each a small class of its own.

A part of your own is a subclass of `Part`, named by its dotted name in a `[[part]]` of the recipe (`recipe`)::

    class PopularityByHour(Part):
        def train(self, training):
            counts = np.ones((24, len(training.entities.item_ids)), np.float32)
            for samples, _ in training.windows():
                row = samples.row_event
                hour = samples.list_hour[samples.row_list, samples.row_slot] - 1
                np.add.at(counts, (hour, samples.event_item[row]), samples.event_labels[row, 0] > 0)
            training.write("popularity_by_hour", {"score": counts / counts.sum(1, keepdims=True)})

A stage or a channel of the pipeline then asks for it: `resources.artifacts["popularity_by_hour"].table("score")`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.entities import Entities
from pocketrank.cloud.data.log import Log
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.samples import Samples
from pocketrank.cloud.published.artifacts import Artifact, ArtifactError, Artifacts, write_artifact
from pocketrank.cloud.training.passes import Passes

__all__ = ["Part", "PartConfig", "PartTraining", "train_part"]


class PartConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base class for the table of a part in the recipe."""


class PartTraining:
    """What a part may use while it trains."""

    def __init__(
        self,
        part: Part,
        made: str,
        passes: Passes,
        pxtr: Path | None,
        out: Path,
        seed: int,
        progress: Callable[[float], None] | None,
        log_scalar: Callable[[str, float, int], None],
    ) -> None:
        """`pxtr` is the folder of the ranker's scores, `out` that of the run."""
        self._part, self._made, self._passes, self._pxtr, self._out = part, made, passes, pxtr, out
        self._progress = progress
        self.seed = seed
        self.log: Log = passes.stream.log
        """The log that the run is trained on."""
        self.log_scalar = log_scalar
        """Takes (name, value, step) of a training curve."""
        self.written: list[str] = []
        """Names of the artifacts so far."""

    @property
    def entities(self) -> Entities:
        """Items and users, of whose arrays the indices in all windows are positions."""
        return self._passes.stream.facts

    def windows(self) -> Iterator[tuple[Samples, ItemStatistics]]:
        """Return the windows of the log in the order of time, with the statistics of the items. May be called again.

        Rows of the test days are among them: a part learns from `samples.event_day < samples.learn_until` alone. The ranker's
        scores of the rows, from before it learned them, are in `event_pxtr`.
        """
        return self._passes.windows(self._pxtr)

    def artifact(self, name: str) -> Artifact:
        """Return an artifact of an earlier part. Raises `ArtifactError`."""
        return Artifacts(self._out / "artifacts")[name]

    def write(self, name: str, tables: Mapping[str, NDArray[Any]], graphs: Mapping[str, bytes] | None = None) -> None:
        """Write the artifact `name`: tables, and graphs in ONNX. Raises `ArtifactError`, OSError."""
        kind = type(self._part)
        dotted = f"{kind.__module__}.{kind.__qualname__}"
        arrays = {table: np.asarray(values) for table, values in tables.items()}
        write_artifact(self._out / "artifacts", name, part=dotted, made=self._made, tables=arrays, graphs=graphs or {})
        self.written.append(name)

    def progress(self, share: float) -> None:
        """Report the share that is done, 0 to 1."""
        if self._progress:
            self._progress(share)


class Part(ABC):
    """Trains something and writes it as artifacts. Raises `ValueError` for a config that does not fit."""

    Config: ClassVar[type[PartConfig]] = PartConfig
    needs: ClassVar[tuple[str, ...]] = ()
    """Artifacts of earlier parts without which it cannot be trained."""

    def __init__(self, config: Any, resources: object = None) -> None:
        """`config` is an instance of `Config`."""
        self.config = config

    @abstractmethod
    def train(self, training: PartTraining) -> None:
        """Train, and write artifacts. A training that was interrupted calls it again."""


def train_part(part: Part, about: Mapping[str, Any], **rest: Any) -> None:
    """Train a part, unless it is done. `about` is what its artifacts depend on beside its config. Raises `ArtifactError`."""
    config = msgspec.to_builtins(part.config)
    text = msgspec.json.encode([type(part).__module__, type(part).__qualname__, config, dict(about)], order="deterministic")
    made = hashlib.sha256(text).hexdigest()
    out: Path = rest["out"]
    artifacts = Artifacts(out / "artifacts")
    if missing := [name for name in part.needs if name not in artifacts.names]:
        raise ArtifactError(f"Expected the artifacts that {type(part).__name__} needs, got none of the name {missing[0]}")
    finished = out / "artifacts" / f"{made}.done"
    if finished.is_file():
        names = msgspec.json.decode(finished.read_bytes(), type=list[str])
        if all(name in artifacts.names and artifacts[name].manifest.made == made for name in names):
            return
    training = PartTraining(part, made, **rest)
    part.train(training)
    if not training.written:
        raise ArtifactError(f"Expected {type(part).__name__} to write an artifact, got none")
    finished.write_bytes(msgspec.json.encode(training.written))
