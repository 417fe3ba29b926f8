"""Real data for tests, which is not part of the repository."""

import os
from pathlib import Path

import pytest


def data_folder(name: str) -> Path:
    """Return a folder of real data, or skip the test with the reason if it is missing.

    It is a folder of `$POCKETRANK_DATA`, by default of `../shared/data` next to the repository.
    """
    data = Path(os.environ.get("POCKETRANK_DATA", Path(__file__).parents[2] / "shared" / "data"))
    folder = data / name
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set POCKETRANK_DATA to the folder that holds {name}")
    return folder


def kuairand_folder() -> Path:
    """Return the folder of the KuaiRand-Pure slice, or skip the test with the reason if it is missing."""
    return data_folder("kuairand_pure")
