"""Expensive test data of several test modules, made once for all parallel processes of pytest."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

__all__ = ["made_once"]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
    """Return the folder that `make` filled, and its result as JSON decodes it, from the first call in any process.

    Tests must only read the folder.
    """
    own = factory.getbasetemp()
    base = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, result = base / name, base / f"{name}.json"
    with FileLock(base / f"{name}.lock"):
        if not result.exists():  # is written last, so that it says that the folder is complete
            folder.mkdir()
            result.write_text(json.dumps(make(folder)))
    return folder, json.loads(result.read_text())
