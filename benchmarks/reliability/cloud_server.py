"""The server of `pocketrank serve` in processes that are killed: `python -m benchmarks.reliability.cloud_server [ahead]`.

It forks a process for each `ServeOrder` (`benchmarks.reliability.forks`), which serves until it is ended. With `ahead` it
imports the server first. Imports are most of a start, so a server that is killed hundreds of times then starts in a fraction
of a second.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from select import select
from typing import Any

import msgspec

from benchmarks.errors import BenchmarkError
from benchmarks.processes import OrderedProcess
from benchmarks.reliability.forks import fork_each
from benchmarks.serving.host import ProcessTree, children

__all__ = ["CloudServer", "ServeOrder", "kill_and_wait", "main"]

_AHEAD = (
    "pocketrank.cloud.serving.app", "pocketrank.cloud.pages.engine", "pocketrank.cloud.serving.process.server",
    "pocketrank.cloud.ranking.rank", "pocketrank.cloud.ranking.fuse", "pocketrank.cloud.retrieval.retrieve",
    "pocketrank.cloud.reranking.spread", "pocketrank.cloud.streams.sqlite", "uvicorn.protocols.http.auto",
    "uvicorn.loops.auto", "uvicorn.lifespan.on", "onnxruntime", "faiss",
)  # fmt: skip
_STOP_S = 15.0
_READY = "Serving on http://127.0.0.1:"


class ServeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Order to serve."""

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
    """Core that the server is pinned to; None: any."""


class CloudServer(ProcessTree):
    """One server at a time, which restarts on the same port. A context.

    `before` is a command that runs this module's, such as one that mounts something first. What servers log is
    appended to the file `log`.
    """

    def __init__(self, log: Path, *, ahead: bool = False, before: Sequence[str] = ()) -> None:
        options = ["ahead"] if ahead else []
        # Killed servers leave temporary files behind, which are removed with the rest of the scratch.
        environment = {"OMP_NUM_THREADS": "1", "TMPDIR": str(log.parent)}
        self.host = OrderedProcess("benchmarks.reliability.cloud_server", *options, before=before, log=log, **environment)
        """The process that forks servers; it outlives them."""
        super().__init__(0)
        self.port = 0

    def begin(self, order: ServeOrder) -> None:
        """Start a server and return while it loads."""
        self.host.send(msgspec.structs.replace(order, port=self.port))
        self.pid = int(self._expect("pid "))

    def start(self, order: ServeOrder) -> None:
        """Start a server and wait until it serves. Raises `BenchmarkError` when it ends instead."""
        self.begin(order)
        self.port = int(self._expect(_READY))

    def _expect(self, beginning: str) -> str:
        line = self.host.read_line()
        if not line.startswith(beginning):
            raise BenchmarkError("the server", f"`{beginning}…`", f"`{line}`{self.host.logged}")
        return line.removeprefix(beginning)

    @property
    def workers(self) -> list[int]:
        """Ids of its workers."""
        return [pid for pid in children(self.pid) if b"spawn_main" in _command_line(pid)]

    def kill(self) -> None:
        """Kill all its processes with -9 and wait until they have ended."""
        if not self.pid:
            return
        kill_and_wait(self.pids)
        self._ended(-signal.SIGKILL)

    def stop(self) -> None:
        """Stop the server with SIGTERM, as an operator does. Raises `BenchmarkError` when it does not end in order."""
        os.kill(self.pid, signal.SIGTERM)
        self._ended(0)

    def _ended(self, expected: int) -> None:
        self.pid = 0
        while not (line := self.host.read_line()).startswith("end "):
            pass  # a killed server may have reported before that it serves
        if (code := int(line.removeprefix("end "))) != expected:
            raise BenchmarkError("the server", f"an end by {expected}", f"one by {code}{self.host.logged}")

    def __enter__(self) -> CloudServer:
        return self

    def __exit__(self, *exception: object) -> None:
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.host.close()


def kill_and_wait(pids: Sequence[int]) -> None:
    """Kill processes with -9 and wait until they have ended, though another process is their parent."""
    handles: list[int] = []
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
        for handle in handles:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        for handle in handles:
            select([handle], [], [], _STOP_S)
    finally:
        for handle in handles:
            os.close(handle)


def _command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def main(arguments: Sequence[str]) -> None:
    """Serve one order after the other from standard input."""
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
