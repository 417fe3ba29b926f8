"""Weights of models on disk, as safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pocketrank.cloud.files import replacing
from pocketrank.cloud.training.errors import RunError

__all__ = ["load_weights", "save_weights"]


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the parameters and buffers of `model` to `path`, atomically. Raises OSError."""
    with replacing(path) as part:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, part)


def load_weights(model: nn.Module, path: Path, prefix: str = "") -> None:
    """Load into `model` what `save_weights` wrote, or only the names that begin with `prefix`. Raises `RunError`."""
    try:
        state = {k.removeprefix(prefix): v for k, v in load_file(path).items() if k.startswith(prefix)}
        model.load_state_dict(state)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RunError(f"Expected the weights of {type(model).__name__}, got: {error} - at {path}") from error
