"""Runs in an MLflow tracking server, or in its database, for teams whose machines share no folder.

::

    experiment `pocketrank`             one MLflow run for each run: numbers as parameters, metrics, lineage as tags, files
    registered model `pocketrank`       one version for each run, with the tag `pocketrank.run`: its name
        alias `active`                  the active run; whoever moves it in MLflow's pages activates a run
        tags `pocketrank.activation.N`  the activations, as in `active.json` of a folder

A run that a server or a command opens is downloaded once into a local folder, under its name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from pocketrank.cloud.training.registry import Activation, Listed, RegistryError, RunRegistry, listed
from pocketrank.cloud.training.run import Run

__all__ = ["MlflowRegistry"]

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads both when it is imported
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

_NAME = "pocketrank"
_ACTIVE = "active"
_RUN, _DIGEST, _ACTIVATION = "pocketrank.run", "pocketrank.digest", "pocketrank.activation."
_FILES = ("run.json", "started.json", "metrics.json", "published", "seed-*", "tensorboard")
"""What belongs to a run in its folder; servers put other files beside it."""
_BATCH = 100
"""Parameters that MLflow takes at once."""
_VALUE_MAX = 6000
"""Longest value of a parameter in MLflow, in characters."""


class MlflowRegistry(RunRegistry):
    """Runs of the MLflow server, or the database, at `uri`. They are downloaded into `folder`."""

    def __init__(self, uri: str, folder: Path = Path("runs")) -> None:
        self._uri, self.folder = uri, folder

    def __str__(self) -> str:
        return f"mlflow:{self._uri}"

    def names(self) -> list[str]:
        """Return the names of all runs that were added. Raises `RegistryError`."""
        return sorted(self._versions())

    def open(self, name: str) -> Run:
        """Return a run, which is downloaded unless it is in the local folder. Raises `RunError`, `RegistryError`."""
        version, here = self._version(name), self.folder / name
        if not (here / "run.json").is_file():
            part = self.folder / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)  # of a download that was killed
            with self._asking() as client:
                part.mkdir(parents=True)
                (part / client.download_artifacts(version.run_id, "run", str(part))).rename(here)
                part.rmdir()
        if _digest(here) != version.tags[_DIGEST]:
            raise RegistryError(
                f"Expected the run {name} of {self}, got another one - at {here}. Rename that folder to download the run."
            )
        return Run.open(here)

    def listed(self, name: str) -> Listed:
        """Return what is known of a run, of which only the record and the metrics are downloaded. Raises `RegistryError`."""
        version = self._version(name)
        with TemporaryDirectory() as folder, self._asking() as client:
            here = Path(folder)
            for file in client.list_artifacts(version.run_id, "run"):
                if file.path in ("run/run.json", "run/metrics.json"):
                    here = Path(client.download_artifacts(version.run_id, file.path, folder)).parent
            return listed(name, here)

    def add(self, run: Run) -> str:
        """Copy a finished run to MLflow under the name of its folder, which is returned. Raises `RegistryError`."""
        from mlflow.entities import Metric, Param, RunTag

        name, record = run.folder.resolve().name, msgspec.to_builtins(run.record)
        if name in self._versions():
            raise RegistryError(f"Expected a new name, got that of a run that is there: {name} - at {self}. Rename the folder.")
        spec = record.pop("spec")
        params = [Param(key, str(value)[:_VALUE_MAX]) for key, value in _leaves(record)]
        try:
            report = msgspec.json.decode((run.folder / "metrics.json").read_bytes())
        except (OSError, msgspec.DecodeError):
            report = {}
        numbers = [(key, value) for key, value in _leaves(report.get("models", {})) if isinstance(value, int | float)]
        tags = {_RUN: name, _DIGEST: _digest(run.folder), "pocketrank.tasks": ", ".join(spec["tasks"])}
        with self._asking() as client:
            found = client.get_experiment_by_name(_NAME)
            experiment = client.create_experiment(_NAME) if found is None else found.experiment_id
            made = client.create_run(experiment, run_name=name, tags=tags).info
            for start in range(0, len(params), _BATCH):
                client.log_batch(made.run_id, params=params[start : start + _BATCH])
            client.log_batch(
                made.run_id,
                metrics=[Metric(key, float(value), made.start_time, 0) for key, value in numbers],
                tags=[RunTag("mlflow.note.content", f"a run of {record['data']}, {record['data_digest']}")],
            )
            for path in sorted(path for pattern in _FILES for path in run.folder.glob(pattern)):
                if path.is_dir():
                    client.log_artifacts(made.run_id, str(path), f"run/{path.name}")
                else:
                    client.log_artifact(made.run_id, str(path), "run")
            if not any(model.name == _NAME for model in client.search_registered_models(f"name = '{_NAME}'")):
                client.create_registered_model(_NAME)
            # Last: a run that was not copied whole is no version.
            client.create_model_version(_NAME, f"{made.artifact_uri}/run", made.run_id, tags=tags)
            client.set_terminated(made.run_id)
        return name

    def history(self) -> tuple[Activation, ...]:
        """Return all activations, oldest first, and one for an alias that was moved otherwise. Raises `RegistryError`."""
        with self._asking() as client:
            models = client.search_registered_models(f"name = '{_NAME}'")
        if not models:
            return ()
        tags, alias = models[0].tags, models[0].aliases.get(_ACTIVE)
        try:
            history = [msgspec.json.decode(tags[key], type=Activation) for key in sorted(tags) if key.startswith(_ACTIVATION)]
        except msgspec.DecodeError as error:
            raise RegistryError(f"Expected activations, got: {error} - at the tags of {_NAME} in {self}") from error
        if alias is not None:
            at = next((version for version in self._versions().values() if int(version.version) == int(alias)), None)
            if at is not None and (not history or history[-1].run != at.tags[_RUN]):
                history.append(Activation(run=at.tags[_RUN], at_ms=models[0].last_updated_timestamp or 0))
        return tuple(history)

    def _append(self, make: Callable[[Sequence[Activation]], Activation]) -> Activation:
        history = self.history()
        added = make(history)
        version = self._version(added.run)
        with self._asking() as client:
            tags = client.get_registered_model(_NAME).tags
            for number, one in enumerate((*history, added), 1):
                if (key := f"{_ACTIVATION}{number:06d}") not in tags:
                    client.set_registered_model_tag(_NAME, key, msgspec.json.encode(one).decode())
            client.set_registered_model_alias(_NAME, _ACTIVE, version.version)
        return added

    def _versions(self) -> dict[str, Any]:
        """Return the model versions by the names of their runs."""
        with self._asking() as client:
            found = client.search_model_versions(f"name = '{_NAME}'")
        return {version.tags[_RUN]: version for version in found if _RUN in version.tags}

    def _version(self, name: str) -> Any:
        versions = self._versions()
        if name not in versions:
            known = ", ".join(sorted(versions)) or "none"
            raise RegistryError(f"Expected one of the runs {known}, got `{name}` - at {self}. `pocketrank runs add` adds one.")
        return versions[name]

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """The client, with errors as `RegistryError`."""
        from mlflow.exceptions import MlflowException

        try:
            yield _client(self._uri)
        except (MlflowException, OSError) as error:
            raise RegistryError(f"Expected an answer of MLflow, got: {error} - at {self}") from error


@lru_cache
def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _digest(folder: Path) -> str:
    """Return the SHA-256 of a run's record, which tells the run from others."""
    return hashlib.sha256((folder / "run.json").read_bytes()).hexdigest()


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
