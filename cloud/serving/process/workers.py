"""Worker processes that accept from one socket, and their supervisor.

The supervisor binds the socket before anything is loaded, starts the workers as fresh interpreters (not forks: the threads of
faiss and onnxruntime do not survive one), reports once that all of them are ready, replaces workers that died or hang, and at
SIGTERM or SIGINT lets each finish what it accepted. It imports nothing heavy and serves nothing itself. A worker whose
supervisor is gone, killed or not, shuts down by itself.

uvicorn has a supervisor, too (`uvicorn.supervisors.multiprocess`, 0.54). It pings a thread of the worker, which answers while
the event loop is blocked; it restarts a worker that keeps dying every half second for ever; it waits for ever for one that
does not end; and its workers outlive it when it is killed.

Errors::

    WorkersError               the server ended otherwise than by a signal; says why
    ├── WorkerStartError       a worker could not start, or kept dying
    └── WorkerStopError        workers were killed, because they did not end in time: requests may be lost
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import c_ulonglong
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from threading import Thread
from time import monotonic, sleep
from typing import Any

from pocketrank.cloud.serving.process.server import print_serving, url_of

__all__ = ["Target", "WorkerStartError", "WorkerStopError", "WorkersConfig", "WorkersError", "run_workers"]

Target = Callable[..., None]
"""Serves: `target(sock, heartbeat, *args)`. It calls `heartbeat()` once it accepts requests, from then on more than once in
`WorkersConfig.hung_s`, and at SIGTERM finishes and returns. `pocketrank.cloud.serving.process.server.run_server` does so."""

_logger = logging.getLogger(__name__)
_SPAWN = multiprocessing.get_context("spawn")
_TICK_S = 0.1
"""Time between two looks at the workers; a worker's death ends it early."""


class WorkersError(RuntimeError):
    """The server ended otherwise than by a signal."""


class WorkerStartError(WorkersError):
    """A worker could not start, or kept dying soon after it had."""


class WorkerStopError(WorkersError):
    """Workers were killed, because they did not end in time. Requests may be lost; acknowledged feedback is not."""


@dataclass(frozen=True)
class WorkersConfig:
    """When a worker is restarted, and how long one may take to end."""

    backoff_s: float = 0.1
    """Pause before a worker that died is restarted; doubled with each death in a row."""
    backoff_max_s: float = 10.0
    """The longest pause."""
    lived_s: float = 30.0
    """A worker that was ready for this long has its deaths forgotten."""
    deaths_max: int = 5
    """Deaths in a row of one worker after which the supervisor gives up: what kills it at once will do so again."""
    ready_s: float = 300.0
    """Longest time to load; a worker that is not ready by then is killed, which counts as a death."""
    hung_s: float = 30.0
    """Longest time without a heartbeat: then the event loop is blocked, and the worker is killed, which counts as a death. It
    must be longer than `ServerConfig.grace_s`, because a server that finishes its last requests sends no heartbeat. 30 s is
    gunicorn's default."""
    stop_s: float = 15.0
    """Longest time to end after SIGTERM, then SIGKILL: more than what the server drains and its requests have to end."""

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that make no sense."""
        times = (self.backoff_s, self.backoff_max_s, self.lived_s, self.ready_s, self.hung_s, self.stop_s)
        if min(times) <= 0 or self.deaths_max < 1:
            raise ValueError(f"Expected times > 0 and deaths_max >= 1, got {self}")


def run_workers(
    target: str,
    args: Sequence[Any],
    sock: socket.socket,
    workers: int,
    config: WorkersConfig = WorkersConfig(),
    *,
    tls: bool = False,
    environment: Callable[[int], Mapping[str, str]] = lambda place: {},
    died: Callable[[int], None] = lambda place: None,
) -> None:
    """Serve the listening `sock` with this number of `workers` until SIGINT or SIGTERM. Call it in the main thread.

    Each worker is a new interpreter that imports `target`, a `Target` as `module:function`, and calls it with `args`, which are
    pickled. `environment` returns the additional environment variables of the worker at a place (0 to workers - 1), which are
    set before it imports the target. `died` is called with the place of a worker that ended. Raises `WorkerStartError` and
    `WorkerStopError`; no worker is left either way.
    """
    if workers < 1:
        raise ValueError(f"Expected at least one worker, got {workers}")

    def start(place: int, beats: Any) -> SpawnProcess:
        worker_args = (target, args, sock, beats, dict(environment(place)), config.stop_s)
        process = _SPAWN.Process(target=_work, args=worker_args, name=f"pocketrank-{place}")
        # Ctrl-C reaches the whole process group, but only the supervisor may act on it: workers inherit a blocked SIGINT.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return process

    places, is_reported = [_Place(number, start, died, config) for number in range(workers)], False
    with _signals() as received:
        try:
            while not received:
                for place in places:
                    place.check()
                if not is_reported and all(place.was_ready for place in places):
                    is_reported = True
                    print_serving(url_of(sock, tls=tls))
                wait([place.process.sentinel for place in places if place.process is not None], _TICK_S)
        finally:
            sock.close()  # the workers have their own; once the last has closed it, connections are refused
            received.clear()
            _stop(places, received, config.stop_s)


class _Place:
    """One place among the workers, and the process that holds it now."""

    def __init__(
        self, number: int, start: Callable[[int, Any], SpawnProcess], died: Callable[[int], None], config: WorkersConfig
    ) -> None:
        self.process: SpawnProcess | None = None
        self.was_ready = False
        """Whether any process of this place has been ready."""
        self._number, self._start, self._died, self._config = number, start, died, config
        self._beats: Any = None
        """The process's count of heartbeats, in memory that both processes map; 0 until it is ready."""
        self._seen = self._deaths = 0
        self._start_at = self._started_at = self._ready_at = self._checked_at = self._silent_s = 0.0

    def check(self) -> None:
        """Start, restart or kill the process where that is due. Raises `WorkerStartError` when restarting is hopeless."""
        now = monotonic()
        if self.process is None:
            if now >= self._start_at:
                self._beats, self._seen, self._started_at = _SPAWN.RawValue(c_ulonglong, 0), 0, now
                self.process = self._start(self._number, self._beats)
            return
        is_alive, beats = self.process.is_alive(), int(self._beats.value)
        if beats and not self._seen:
            self.was_ready, self._ready_at = True, now
        # Of the time between two checks only a tick counts: while the machine was suspended, nobody was silent.
        self._silent_s = self._silent_s + min(now - self._checked_at, _TICK_S) if beats == self._seen else 0.0
        self._seen, self._checked_at = beats, now
        if not is_alive:
            self._plan_restart(now)
        elif not beats and now - self._started_at >= self._config.ready_s:
            self._kill(f"was not ready within {self._config.ready_s:g} s", now)
        elif beats and self._silent_s >= self._config.hung_s:
            self._kill(f"is hung: its event loop was blocked for {self._config.hung_s:g} s", now)

    def _kill(self, why: str, now: float) -> None:
        assert self.process is not None
        _logger.error("worker %d %s; it is killed", self._number, why)
        self.process.kill()
        self._plan_restart(now)

    def _plan_restart(self, now: float) -> None:
        """Reap a process that ended and plan its restart, or raise `WorkerStartError`."""
        code, number = self.reap(), self._number
        if not self.was_ready:
            raise WorkerStartError(f"Expected worker {number} to start, got exit code {code}; its own error is above.")
        has_lived = self._seen and now - self._ready_at >= self._config.lived_s
        self._deaths = 1 if has_lived else self._deaths + 1
        if self._deaths >= self._config.deaths_max:
            raise WorkerStartError(
                f"Expected worker {number} to live, got {self._deaths} deaths in a row, the last with exit code {code}."
            )
        pause_s = min(self._config.backoff_s * 2 ** (self._deaths - 1), self._config.backoff_max_s)
        self._start_at = now + pause_s
        _logger.error("worker %d ended with exit code %s; it is restarted in %.1f s", number, code, pause_s)

    def reap(self) -> int | None:
        """Wait until the process has ended and return its exit code."""
        assert self.process is not None
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        self.process = None
        self._died(self._number)
        return code


def _stop(places: Sequence[_Place], received: Sequence[int], stop_s: float) -> None:
    """End all workers; kill those that are left at the next signal or after `stop_s`. Raises `WorkerStopError` then."""
    running = {place: place.process for place in places if place.process is not None}
    for process in running.values():
        process.terminate()
    deadline, killed = monotonic() + stop_s, 0
    while running:
        wait([process.sentinel for process in running.values()], _TICK_S)
        if received or monotonic() >= deadline:
            killed = sum(process.is_alive() for process in running.values())
            for process in running.values():
                process.kill()
        for place in [place for place, process in running.items() if killed or not process.is_alive()]:
            place.reap()
            del running[place]
    if killed:
        raise WorkerStopError(f"Expected workers to end within {stop_s:g} s, got {killed} that were killed.")


def _work(
    target: str, args: Sequence[Any], sock: socket.socket, beats: Any, environment: Mapping[str, str], stop_s: float
) -> None:
    """Run the target in a worker process."""
    os.environ.update(environment)
    Thread(target=_end_with_supervisor, args=(stop_s,), name="pocketrank-supervised", daemon=True).start()

    def heartbeat() -> None:
        beats.value += 1

    module, _, function = target.partition(":")
    getattr(import_module(module), function)(sock, heartbeat, *args)


def _end_with_supervisor(stop_s: float) -> None:
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)
    sleep(stop_s)
    os._exit(1)  # nobody is left to kill it


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that end a server as they are received in the block."""
    received: list[int] = []
    ending = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        ending.append(signal.SIGHUP)
    before = {one: signal.signal(one, lambda number, _: received.append(number)) for one in ending}
    try:
        yield received
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
