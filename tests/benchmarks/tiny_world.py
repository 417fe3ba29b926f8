"""A tiny world with its models trained and exported, for benchmarks that play in it."""

import re
from pathlib import Path
from shutil import copytree

import pytest

from benchmarks.paging import PagingExtent
from benchmarks.trained import trained
from pocketrank.sdk_demo.world import DEFAULT_WORLD, WorldConfig
from tests.shared import made_once

__all__ = ["SEED", "tiny_world"]

SEED = 1
"""Of the training."""
_SIZES = {"items": "300", "count": "30", "days": "4.0", "sessions_per_user": "2.0"}


def tiny_world(factory: pytest.TempPathFactory, folder: Path) -> None:
    """Leave `world.toml` and `work`, as a benchmark keeps it, in `folder`."""
    made, _ = made_once(factory, "tiny_world", _make)
    copytree(made, folder, dirs_exist_ok=True)


def _make(folder: Path) -> None:
    text = DEFAULT_WORLD.read_text()
    for name, value in _SIZES.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, count=1, flags=re.MULTILINE)
    (folder / "world.toml").write_text(text)
    trained(WorldConfig.load(folder / "world.toml"), PagingExtent().train, SEED, folder / "work", lambda what, share: None)
