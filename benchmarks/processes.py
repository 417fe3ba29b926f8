"""Child processes of the benchmarks: fresh ones that run to their end, and ones that take orders.

Fresh processes are as an app has them: all code is compiled to bytecode before, as pip leaves what it installs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Self

import msgspec

from benchmarks.errors import BenchmarkError

__all__ = ["ROOT", "OrderedProcess", "fresh_processes", "own_environment", "wait_until"]

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds `benchmarks` and `src`."""


def own_environment(**more: str) -> dict[str, str]:
    """Return the environment in which a child process finds this code, with `more` variables."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path} | more


@contextmanager
def fresh_processes() -> Iterator[Callable[..., str]]:
    """Yield a function that runs Python with its arguments and returns what it prints.

    What was run in the block once is compiled for the next time. The function raises `BenchmarkError` when the process fails.
    """
    with TemporaryDirectory(prefix="pocketrank-") as folder:
        environment = own_environment(PYTHONPYCACHEPREFIX=folder)
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def run(*arguments: str) -> str:
            done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchmarkError(" ".join(arguments), "exit code 0", f"{done.returncode}: {done.stderr.strip()[-500:]}")
            return done.stdout

        yield run


def wait_until(done: Callable[[], bool], seconds: float, where: str, expected: str) -> float:
    """Wait until `done` and return the seconds that it took. Raises `BenchmarkError` after `seconds`."""
    began = monotonic()
    while not done():
        if monotonic() - began > seconds:
            raise BenchmarkError(where, f"{expected} within {seconds:g} s", "none")
        sleep(0.005)
    return monotonic() - began


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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
