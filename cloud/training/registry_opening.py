"""Opening of a registry of runs by its name on a command line."""

from __future__ import annotations

from pathlib import Path

from pocketrank.cloud.training.registry import FolderRegistry, RunRegistry

__all__ = ["open_registry"]

_MLFLOW = "mlflow:"


def open_registry(text: str) -> RunRegistry:
    """Return the registry that `text` names: a folder, or `mlflow:URI#FOLDER`, which downloads runs into FOLDER (`runs`)."""
    if not text.startswith(_MLFLOW):
        return FolderRegistry(Path(text).expanduser())
    from pocketrank.cloud.training.mlflow_registry import MlflowRegistry  # few teams have its library

    uri, _, folder = text.removeprefix(_MLFLOW).partition("#")
    return MlflowRegistry(uri, Path(folder or "runs").expanduser())
