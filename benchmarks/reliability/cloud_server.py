"""The server of `pocketrank serve` in processes to be killed: `python -m benchmarks.reliability.cloud_server [ahead]`.

It forks a process for each `ServeOrder` (`benchmarks.reliability.forks`), which serves until it is ended. With `ahead` it
imports the server first: that is most of a start, and one that is killed hundreds of times then starts in a fraction of a
second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from select import select
from typing import Any

import msgspec

from benchmarks.errors import BenchmarkError
from benchmarks.processes import own_environment
from benchmarks.reliability.forks import fork_each
from benchmarks.serving.host import children, cpu_s, memory_bytes

__all__ = ["CloudServer", "ServeOrder", "main"]

_AHEAD = (
    "pocketrank.cloud.serving.app", "pocketrank.cloud.pages.engine", "pocketrank.cloud.serving.process.server",
    "pocketrank.cloud.ranking.rank", "pocketrank.cloud.ranking.fuse", "pocketrank.cloud.retrieval.retrieve",
    "pocketrank.cloud.reranking.spread", "pocketrank.cloud.streams.sqlite", "uvicorn.protocols.http.auto",
    "uvicorn.loops.auto", "uvicorn.lifespan.on", "onnxruntime", "faiss",
)  # fmt: skip
_STOP_S = 15.0
_SAYS = "Serving on http://127.0.0.1:"


class ServeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What to serve."""

    run: str
    """Folder of the run."""
    log: str
    """File of the feedback log."""
    port: int = 0
    """0 takes a free one."""
    workers: int = 1
    """Processes that serve."""
    store: str | None = None
    """URL of the embedding store; None: files in the run's folder."""
    core: int | None = None
    """The core that it is held to; None: any."""


class CloudServer:
    """One server at a time, which starts again on the same port. A context.

    `before` is a command that runs this module's, such as one that mounts something first. What servers log goes to the file
    `said`.
    """

    def __init__(self, said: Path, *, ahead: bool = False, before: Sequence[str] = ()) -> None:
        self._said = said
        command = [*before, sys.executable, "-m", "benchmarks.reliability.cloud_server", *(["ahead"] if ahead else [])]
        # Killed ones leave temporary files behind: they go with the rest of the scratch.
        environment = own_environment(OMP_NUM_THREADS="1", TMPDIR=str(said.parent))
        with said.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                bufsize=1,
                env=environment,
            )
        self.port = self.pid = 0

    def begin(self, order: ServeOrder) -> None:
        """Start a server and return while it loads."""
        assert self._process.stdin is not None
        order = msgspec.structs.replace(order, port=self.port)
        self._process.stdin.write(msgspec.json.encode(order).decode() + "\n")
        self.pid = int(self._heard("pid "))

    def wait_ready(self) -> None:
        """Wait until it serves. Raises `BenchmarkError` when it ends instead."""
        self.port = int(self._heard(_SAYS))

    def start(self, order: ServeOrder) -> None:
        """Start a server and wait until it serves."""
        self.begin(order)
        self.wait_ready()

    @property
    def host_pid(self) -> int:
        """The process that forks servers; it outlives them."""
        return self._process.pid

    def _heard(self, beginning: str) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().rstrip("\n")
        if not line.startswith(beginning):
            raise BenchmarkError("the server", f"`{beginning}…`", f"`{line}`; it said: {self._said.read_text()[-2000:]}")
        return line.removeprefix(beginning)

    @property
    def pids(self) -> list[int]:
        """The server and all processes that it started."""
        found, new = [], [self.pid] if self.pid else []
        while new:
            found += new
            new = [child for pid in new for child in children(pid)]
        return found

    @property
    def workers(self) -> list[int]:
        """Those of its processes that serve beside others."""
        return [pid for pid in children(self.pid) if b"spawn_main" in _command_line(pid)]

    def cpu_s(self) -> float:
        """CPU seconds of all its processes since their start."""
        return sum(cpu_s(pid) for pid in self.pids)

    def memory_bytes(self) -> int:
        """Of all its processes; pages that several map are shared out."""
        return sum(memory_bytes(pid) for pid in self.pids)

    def kill(self) -> None:
        """With -9, all its processes; they are gone when this returns."""
        if not self.pid:
            return
        ends = [end for end in map(_end_of, self.pids) if end is not None]
        try:
            for end in ends:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(end, signal.SIGKILL)
            for end in ends:
                select([end], [], [], _STOP_S)
        finally:
            for end in ends:
                os.close(end)
        self._ended(-signal.SIGKILL)

    def kill_worker(self, pid: int) -> None:
        """One of `workers`, with -9; it is gone when this returns."""
        if (end := _end_of(pid)) is not None:
            try:
                signal.pidfd_send_signal(end, signal.SIGKILL)
                select([end], [], [], _STOP_S)
            finally:
                os.close(end)

    def stop(self) -> None:
        """As an operator does. Raises `BenchmarkError` when it does not end in order."""
        os.kill(self.pid, signal.SIGTERM)
        self._ended(0)

    def _ended(self, expected: int) -> None:
        assert self._process.stdout is not None
        self.pid = 0
        for line in self._process.stdout:  # a killed one may have said that it serves
            if line.startswith("end "):
                if (code := int(line.removeprefix("end "))) != expected:
                    said = self._said.read_text()[-2000:]
                    raise BenchmarkError("the server", f"an end by {expected}", f"one by {code}; it said: {said}")
                return
        raise BenchmarkError("the server", "its last word", "nothing more")

    def __enter__(self) -> CloudServer:
        return self

    def __exit__(self, *exception: object) -> None:
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.communicate()


def _end_of(pid: int) -> int | None:
    """A handle by which to end a process and wait for its end, though another is its parent."""
    with suppress(ProcessLookupError):
        return os.pidfd_open(pid)
    return None


def _command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def main(arguments: Sequence[str]) -> None:
    """Serve what standard input says, one after the other."""
    if "ahead" in arguments:
        for name in _AHEAD:
            import_module(name)
    fork_each(ServeOrder, _serve)


def _serve(order: ServeOrder) -> None:
    if order.core is not None:
        os.sched_setaffinity(0, {order.core})  # before any library counts cores or starts threads
    from pocketrank.cloud.pipeline.config import PipelineConfig, StoreConfig
    from pocketrank.cloud.serving.config import ServingConfig
    from pocketrank.cloud.serving.process.serve import serve
    from pocketrank.cloud.training.run import Run

    more: dict[str, Any] = {"store": StoreConfig(url=order.store)} if order.store else {}
    config = ServingConfig(pipeline=PipelineConfig(**more), workers=order.workers)
    serve(Run.open(Path(order.run)), None, port=order.port, feedback_db=Path(order.log), config=config)


if __name__ == "__main__":
    main(sys.argv[1:])
