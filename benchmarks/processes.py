"""Fresh Python processes as an app has them: all code is compiled to bytecode before, as pip leaves what it installs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from benchmarks.errors import BenchmarkError

__all__ = ["Processes"]

_ROOT = Path(__file__).resolve().parent.parent


class Processes:
    """A context; what was run in it once is compiled for the next time."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="pocketrank-")
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._environment = own | {"PYTHONPATH": path, "PYTHONPYCACHEPREFIX": self._folder.name}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def __call__(self, *arguments: str) -> str:
        """What Python with these arguments prints. Raises `BenchmarkError` when it fails."""
        done = subprocess.run([sys.executable, *arguments], env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(" ".join(arguments), "exit code 0", f"{done.returncode}: {done.stderr.strip()[-500:]}")
        return done.stdout
