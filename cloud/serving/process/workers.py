"""Several processes that serve one socket, and the supervisor that keeps them.

The supervisor binds the socket before anything is loaded, starts the workers as fresh interpreters (not forks: the threads of
faiss and onnxruntime do not survive one), says once that all are ready, starts anew what dies, and at SIGTERM or SIGINT lets
each finish what it accepted. It imports nothing heavy and serves nothing itself. A worker whose supervisor is gone, however it
went, shuts down by itself.

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
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Thread
from time import monotonic, sleep
from typing import Any

from pocketrank.cloud.serving.process.server import say_serving, url_of

__all__ = ["Target", "WorkerStartError", "WorkerStopError", "WorkersConfig", "WorkersError", "run_workers"]

Target = Callable[..., None]
"""Serves: `target(sock, ready, *args)`. It calls `ready()` once it accepts requests, and at SIGTERM finishes and returns.
`pocketrank.cloud.serving.process.server.run_server` does both."""

_logger = logging.getLogger(__name__)
_SPAWN = multiprocessing.get_context("spawn")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkersError(RuntimeError):
    """The server ended otherwise than by a signal."""


class WorkerStartError(WorkersError):
    """A worker could not start, or kept dying soon after it had."""


class WorkerStopError(WorkersError):
    """Workers were killed, because they did not end in time. Requests may be lost; acknowledged feedback is not."""


@dataclass(frozen=True)
class WorkersConfig:
    """When a worker is started again, and how long one may take to end."""

    backoff_s: float = 0.1
    """Pause before a worker that died is started again; doubled with each death in a row."""
    backoff_max_s: float = 10.0
    """The longest pause."""
    lived_s: float = 30.0
    """A worker that was ready for so long starts a new row."""
    deaths_max: int = 5
    """Deaths in a row of one worker after which the supervisor gives up: what kills it at once will do so again."""
    ready_s: float = 300.0
    """Longest time to load; a worker that is not ready by then is killed, which counts as a death."""
    stop_s: float = 15.0
    """Longest time to end after SIGTERM, then SIGKILL: more than what the server drains and its requests have to end."""

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that make no sense."""
        if min(self.backoff_s, self.backoff_max_s, self.lived_s, self.ready_s, self.stop_s) <= 0 or self.deaths_max < 1:
            raise ValueError(f"Expected times > 0 and deaths_max >= 1, got {self}")


class _Worker:
    """One place among the workers, and the process that holds it now."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.process: SpawnProcess | None = None
        self.pipe: Connection | None = None
        self.ready_at: float | None = None
        self.was_ready = False
        self.deaths = 0
        self.due = 0.0
        """When it is started, or must be ready."""


def run_workers(
    target: str,
    args: Sequence[Any],
    sock: socket.socket,
    workers: int,
    config: WorkersConfig | None = None,
    *,
    tls: bool = False,
    environment: Callable[[int], Mapping[str, str]] = lambda place: {},
    died: Callable[[int], None] = lambda place: None,
) -> None:
    """Serve the listening `sock` with so many `workers` until SIGINT or SIGTERM. Call it in the main thread.

    Each is a new interpreter that imports `target`, a `Target` as `module:function`, and calls it with `args`, which are
    pickled. `environment` gives more environment variables for the worker at a place (0 to workers - 1), set before it imports
    anything. `died` is told the place of a worker that is gone. Raises `WorkerStartError` and `WorkerStopError`; no worker is
    left either way.
    """
    _Supervisor(target, tuple(args), sock, workers, config or WorkersConfig(), tls, environment, died).run()


class _Supervisor:
    def __init__(
        self,
        target: str,
        args: tuple[Any, ...],
        sock: socket.socket,
        workers: int,
        config: WorkersConfig,
        tls: bool,
        environment: Callable[[int], Mapping[str, str]],
        died: Callable[[int], None],
    ) -> None:
        if workers < 1:
            raise ValueError(f"Expected at least one worker, got {workers}")
        self._target, self._args, self._sock, self._config, self._tls = target, args, sock, config, tls
        self._environment, self._died = environment, died
        self._workers = [_Worker(place) for place in range(workers)]
        self._said = False

    def run(self) -> None:
        with _signals() as told:
            try:
                while not told.poll():
                    self._start_due()
                    self._look(told)
            finally:
                self._stop(told)

    def _start_due(self) -> None:
        now = monotonic()
        for worker in self._workers:
            if worker.process is None and worker.due <= now:
                self._start(worker)
            elif worker.process is not None and worker.ready_at is None and worker.due <= now:
                _logger.error("worker %d was not ready within %g s", worker.place, self._config.ready_s)
                worker.process.kill()

    def _start(self, worker: _Worker) -> None:
        worker.pipe, theirs = _SPAWN.Pipe(duplex=False)
        worker.process = _SPAWN.Process(
            target=_work,
            args=(self._target, self._args, self._sock, theirs, self._config.stop_s),
            name=f"pocketrank-{worker.place}",
        )
        # Ctrl-C goes to the whole group, and it is the supervisor that tells its workers: they keep SIGINT blocked.
        with _blocked(signal.SIGINT), _changed(self._environment(worker.place)):
            worker.process.start()
        theirs.close()
        worker.ready_at, worker.due = None, monotonic() + self._config.ready_s

    def _look(self, told: Connection) -> None:
        """Wait until something happens to a worker, or is due, or a signal comes; see to the workers."""
        pipes = {w.pipe: w for w in self._workers if w.pipe is not None}
        sentinels = {w.process.sentinel: w for w in self._workers if w.process is not None}
        due = [w.due for w in self._workers if w.process is None or w.ready_at is None]
        happened = wait([told, *pipes, *sentinels], max(0.0, min(due) - monotonic()) if due else None)
        for one in happened:
            if isinstance(one, Connection) and one in pipes:
                self._hear(pipes[one])
        for one in happened:
            if isinstance(one, int):
                self._bury(sentinels[one])

    def _hear(self, worker: _Worker) -> None:
        assert worker.pipe is not None
        try:
            worker.pipe.recv_bytes()
            worker.ready_at, worker.was_ready = monotonic(), True
        except EOFError:
            pass  # it is gone, or going
        worker.pipe.close()
        worker.pipe = None
        if not self._said and all(w.was_ready for w in self._workers):
            self._said = True
            say_serving(url_of(self._sock, tls=self._tls))

    def _bury(self, worker: _Worker) -> None:
        code, lived = self._reap(worker), worker.ready_at and monotonic() - worker.ready_at
        if not worker.was_ready:
            raise WorkerStartError(f"Expected worker {worker.place} to start, got exit code {code}; its own error is above.")
        worker.deaths = 1 if lived is not None and lived >= self._config.lived_s else worker.deaths + 1
        if worker.deaths >= self._config.deaths_max:
            raise WorkerStartError(
                f"Expected worker {worker.place} to live, got {worker.deaths} deaths in a row, the last with exit code {code}."
            )
        pause = min(self._config.backoff_s * 2 ** (worker.deaths - 1), self._config.backoff_max_s)
        worker.due = monotonic() + pause
        _logger.error("worker %d ended with exit code %s; it is started again in %.1f s", worker.place, code, pause)

    def _reap(self, worker: _Worker) -> int | None:
        assert worker.process is not None
        worker.process.join()
        code = worker.process.exitcode
        worker.process.close()
        worker.process = None
        if worker.pipe is not None:
            worker.pipe.close()
            worker.pipe = None
        self._died(worker.place)
        return code

    def _stop(self, told: Connection) -> None:
        """End all workers; a second signal, or their time, ends the patience with them."""
        self._sock.close()  # the workers have their own; when the last has closed it, connections are refused
        while told.poll():
            told.recv_bytes()
        running = [w for w in self._workers if w.process is not None]
        for worker in running:
            worker.process.terminate()  # type: ignore[union-attr]
        until, killed = monotonic() + self._config.stop_s, 0
        while running:
            left = until - monotonic()
            sentinels = [w.process.sentinel for w in running if w.process is not None]
            if not (happened := wait([told, *sentinels], max(0.0, left))) or told in happened:
                killed = len(running)
                for worker in running:
                    worker.process.kill()  # type: ignore[union-attr]
                    self._reap(worker)
                break
            for worker in [w for w in running if w.process is not None and w.process.sentinel in happened]:
                self._reap(worker)
                running.remove(worker)
        if killed:
            raise WorkerStopError(f"Expected workers to end within {self._config.stop_s:g} s, got {killed} that were killed.")


def _work(target: str, args: tuple[Any, ...], sock: socket.socket, ready: Connection, stop_s: float) -> None:
    """What a worker does: the target, by its name."""
    Thread(target=_end_with_supervisor, args=(stop_s,), name="pocketrank-supervised", daemon=True).start()
    module, _, function = target.partition(":")

    def say_ready() -> None:
        ready.send_bytes(b"ready")
        ready.close()

    getattr(import_module(module), function)(sock, say_ready, *args)


def _end_with_supervisor(stop_s: float) -> None:
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)
    sleep(stop_s)
    os._exit(1)  # nobody is left who would kill it


@contextmanager
def _signals() -> Iterator[Connection]:
    """Readable when SIGINT or SIGTERM came, one message each."""
    theirs, ours = multiprocessing.Pipe(duplex=False)
    before = {one: signal.signal(one, lambda *_: ours.send_bytes(b"!")) for one in _SIGNALS}
    try:
        yield theirs
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        theirs.close()
        ours.close()


@contextmanager
def _blocked(one: signal.Signals) -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, [one])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [one])


@contextmanager
def _changed(environment: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
