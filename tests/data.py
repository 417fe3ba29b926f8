"""Where tests find real data, which is no part of the repository."""

import os
from pathlib import Path

import pytest


def kuairand_folder() -> Path:
    """The KuaiRand-Pure slice; skips the test, saying why, where it is absent.

    It is looked for in `$POCKETRANK_DATA`, by default `../shared/data` beside the repository.
    """
    data = Path(os.environ.get("POCKETRANK_DATA", Path(__file__).parents[2] / "shared" / "data"))
    folder = data / "kuairand_pure"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set POCKETRANK_DATA to the folder that holds kuairand_pure")
    return folder
