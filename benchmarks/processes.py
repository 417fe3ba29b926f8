"""Fresh Python processes as an app has them: all code is compiled to bytecode before, as pip leaves what it installs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from benchmarks.errors import BenchmarkError

__all__ = ["ROOT", "Processes", "own_environment"]

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds `benchmarks` and `src`."""


def own_environment(**more: str) -> dict[str, str]:
    """The environment in which a child process finds this code, with `more` variables."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path} | more


class Processes:
    """A context; what was run in it once is compiled for the next time."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="pocketrank-")
        self._environment = own_environment(PYTHONPYCACHEPREFIX=self._folder.name)
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)

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
