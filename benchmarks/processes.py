"""Child processes of the benchmarks: fresh ones that run to their end, and ones that take orders.

Fresh processes are as an app has them: all code is compiled to bytecode before, as pip leaves what it installs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.errors import BenchmarkError

__all__ = ["ROOT", "OrderedProcess", "Processes", "own_environment"]

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds `benchmarks` and `src`."""


def own_environment(**more: str) -> dict[str, str]:
    """Return the environment in which a child process finds this code, with `more` variables."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path} | more


class Processes:
    """Runner of fresh Python processes. A context; what was run in it once is compiled for the next time."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="pocketrank-")
        self._environment = own_environment(PYTHONPYCACHEPREFIX=self._folder.name)
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()

    def __call__(self, *arguments: str) -> str:
        """Run Python with these arguments and return what it prints. Raises `BenchmarkError` when it fails."""
        done = subprocess.run([sys.executable, *arguments], env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(" ".join(arguments), "exit code 0", f"{done.returncode}: {done.stderr.strip()[-500:]}")
        return done.stdout


class OrderedProcess:
    """Python module run as a process that reads orders, one JSON line each, and answers in lines. A context that kills it.

    `before` is a command that runs the module's, such as one that mounts something first. What the process
    writes to stderr is appended to the file `log`.
    """

    def __init__(
        self, module: str, *arguments: str, before: Sequence[str] = (), log: Path | None = None, **environment: str
    ) -> None:
        self._module, self._log, pipe = module, log, subprocess.PIPE
        command = [*before, sys.executable, "-m", module, *arguments]
        with nullcontext() if log is None else log.open("ab") as file:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=file, env=own_environment(**environment))

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def send(self, order: msgspec.Struct) -> None:
        """Send an order."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()

    def read_line(self) -> str:
        """Return the next line without its end. Raises `BenchmarkError` when the process has ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(self._module, "a process that answers", f"exit code {self._process.wait()}{self.logged}")
        return line.decode().rstrip("\n")

    @property
    def logged(self) -> str:
        """End of the log, as a part of an error's message."""
        return "" if self._log is None else f"; it logged: {self._log.read_text()[-2000:]}"

    def close(self) -> None:
        """Kill the process and wait until it has ended."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> OrderedProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
