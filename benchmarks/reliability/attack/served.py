"""The server under attack: the command `pocketrank serve` as an operator starts it, pinned to a core."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from select import select
from time import monotonic
from typing import Self

from benchmarks.errors import BenchmarkError
from benchmarks.processes import own_environment
from benchmarks.reliability.cloud_server import kill_and_wait
from benchmarks.serving.host import ProcessTree, on_core

__all__ = ["Served"]

_COMMAND = (sys.executable, "-c", "from pocketrank.sdk_demo.cli import main; main()", "serve")
_READY = b"Serving on http://127.0.0.1:"
_START_S = 60.0
_END_S = 15.0


class Served(ProcessTree):
    """One server at a time, which restarts on the same port. A context that ends it.

    `before` is a command that runs the server's. What it logs is appended to the file `log`.
    """

    def __init__(self, options: Sequence[str], log: Path, core: int, before: Sequence[str] = ()) -> None:
        super().__init__(0)
        self.port, self._options, self._log, self._core, self._before = 0, options, log, core, before
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it, and return the seconds until it served. Raises `BenchmarkError` when it does not."""
        since = monotonic()
        command = [*self._before, *_COMMAND, "--port", str(self.port), *self._options]
        with self._log.open("ab") as log, on_core(self._core):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=own_environment(OMP_NUM_THREADS="1"))
        self._process, self.pid = process, process.pid
        assert process.stdout is not None
        line = process.stdout.readline() if select([process.stdout], [], [], _START_S)[0] else b""
        if not line.startswith(_READY):
            raise BenchmarkError("the server", "a start", f"`{line.decode()}`; it logged: {self.log_text()[-2000:]}")
        self.port = int(line.removeprefix(_READY))
        return monotonic() - since

    def end(self, number: int = signal.SIGTERM, wait_s: float = _END_S) -> int | None:
        """Send it a signal and return its exit code; None when it had not ended after `wait_s` and was killed."""
        process, pids = self._process, self.pids
        if process is None:
            return None
        process.send_signal(number)
        try:
            return process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self._kill(pids)

    def signal(self, number: int, wait_s: float) -> int | None:
        """Send it a signal and return its exit code; None when it goes on for `wait_s`."""
        assert self._process is not None
        self._process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(wait_s)
            self._forget()
            return code
        return None

    def log_text(self) -> str:
        """Return what it logged."""
        return self._log.read_text(errors="replace")

    def _kill(self, pids: Sequence[int]) -> None:
        kill_and_wait(pids)
        if self._process is not None:
            self._process.wait()
        self._forget()

    def _forget(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        self._process, self.pid = None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self._kill(self.pids)
