"""What several test modules need and takes long to make: made once for all processes that pytest has side by side."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

__all__ = ["made_once"]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
    """The folder that `make` filled, whoever called it, and what it answered, as JSON has it. Tests only read it."""
    own = factory.getbasetemp()
    base = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, answered = base / name, base / f"{name}.json"
    with FileLock(base / f"{name}.lock"):
        if not answered.exists():  # written last
            folder.mkdir()
            answered.write_text(json.dumps(make(folder)))
    return folder, json.loads(answered.read_text())
