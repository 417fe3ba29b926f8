"""A run, or the active one of a registry, served over HTTP, by one process or by a supervisor and its workers."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from random import uniform
from typing import TYPE_CHECKING

from pocketrank.cloud.serving.access.access import Access, check_host
from pocketrank.cloud.serving.access.tokens import TokenFile
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.serving.process.beside import beside
from pocketrank.cloud.serving.process.names import bounded_lookups
from pocketrank.cloud.serving.process.server import listen, run_server
from pocketrank.cloud.serving.process.workers import run_workers
from pocketrank.cloud.serving.routes.health import Health
from pocketrank.cloud.serving.telemetry.logs import configure_logs
from pocketrank.cloud.serving.telemetry.shared_metrics import shared_metrics
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.cloud.training.registry import RunRegistry
from pocketrank.cloud.training.run import Run

if TYPE_CHECKING:
    from pocketrank.cloud.serving.served_run import CurrentRun

__all__ = ["open_access", "serve", "serve_on"]

_logger = logging.getLogger(__name__)


def serve(
    run: Run | RunRegistry,
    bundle: Path | None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    feedback_db: Path | None = None,
    config: ServingConfig | None = None,
    anybody: bool = False,
) -> None:
    """Serve `run` until SIGINT or SIGTERM, and return when the requests under way are answered. Prints the URL when ready.

    Of a registry the active run is served, and followed: another one that becomes active is served without a restart.

    `port` 0 takes a free port. `feedback_db` is the file of the feedback log, by default `feedback.db` in the folder of the run
    or of the registry. Without tokens only this machine is served, unless `anybody` is set because something else checks the
    callers (`OpenServerError`). Raises `PublishedError`, `PipelineError`, `RetrievalError`, `StoreError`, `BundleFilesError`,
    `LogOpenError`, `TokenFileError`, `RunError`; `PortError` when the address cannot be used; and `WorkersError` with several
    workers.
    """
    config = config or ServingConfig()
    check_host(host, has_tokens=config.tokens is not None or config.user_keys is not None, is_open=anybody)
    db = feedback_db or run.folder / "feedback.db"
    with listen(host, port) as sock:  # first: a port in use is reported before anything is loaded
        from pocketrank.cloud.pages.engine import fill_stores
        from pocketrank.cloud.serving.served_run import fill_first

        configure_logs(config.logs)  # a supervisor logs in the same form as its workers
        open_access(config)  # a file that cannot be used is reported once, and not by every worker
        if config.tokens is not None and config.user_keys is None:
            _logger.warning("tokens with the scope `device` may speak for any user; `--user-keys` binds each to one")
        if isinstance(run, Run):
            fill_stores(run, config)
        else:
            fill_first(run, config)
        with closing(SqliteFeedbackLog(db, config.log)) as log:  # workers that start at once would not wait for an upgrade
            SqliteEventLog(log.events, log, config.events).close()
        with beside(_learning(run.folder, db)) if config.learns else nullcontext():
            _serve_workers(sock, run, bundle, db, config)


def _learning(run: Path, db: Path) -> list[str]:
    """Return the command that learns beside a server."""
    return [sys.executable, "-m", "pocketrank", "learn", "--run", str(run), "--feedback-db", str(db)]


def _serve_workers(sock: socket.socket, run: Run | RunRegistry, bundle: Path | None, db: Path, config: ServingConfig) -> None:
    if config.workers == 1:
        serve_on(sock, None, run, bundle, db, config)
        return
    target, args = "pocketrank.cloud.serving.process.serve:serve_on", (run, bundle, db, config)
    tls = config.server.tls is not None
    with shared_metrics() as shared:
        run_workers(target, args, sock, config.workers, tls=tls, environment=shared.environment, died=shared.died)


def open_access(config: ServingConfig) -> Access:
    """Return the check of requests that `config` asks for. Raises `TokenFileError`."""
    keys = None
    if config.user_keys is not None:
        from pocketrank.cloud.serving.access.user_tokens import UserKeyFile  # few servers need its libraries

        keys = UserKeyFile(config.user_keys)
    return Access(TokenFile(config.tokens) if config.tokens else None, config.limits, keys)


def serve_on(
    sock: socket.socket,
    heartbeat: Callable[[], None] | None,
    run: Run | RunRegistry,
    bundle: Path | None,
    db: Path,
    config: ServingConfig,
) -> None:
    """Serve a run, or the active one of a registry, on a listening socket, in this process. `run_server` describes
    `heartbeat`.
    """
    from pocketrank.cloud.serving.app import create_app
    from pocketrank.cloud.serving.served_run import CurrentRun, ServedRun, open_first

    configure_logs(config.logs)
    health, access = Health(config.health), open_access(config)
    registry = None if isinstance(run, Run) else run
    if isinstance(run, Run):  # as it is now: a worker may start long after its supervisor
        first = ServedRun(run.folder.resolve().name, Run.open(run.folder), config)
    else:
        first = open_first(run, config)
    with ExitStack() as stack:
        serves = stack.enter_context(closing(CurrentRun(first)))
        log = stack.enter_context(closing(SqliteFeedbackLog(db, config.log)))
        events = stack.enter_context(closing(SqliteEventLog(log.events, log, config.events)))
        uploads = run.folder / "bundles" if config.tokens else None
        app = create_app(
            serves, bundle, log, config, access=access, health=health, events=events, uploads=uploads, registry=registry
        )
        gc.collect()
        gc.freeze()  # what is loaded lives long, most of it as long as the process: no later collection has to traverse it
        if heartbeat is not None:
            heartbeat = _unless_hung(heartbeat, serves, config.hung_s)
        with bounded_lookups():
            run_server(app, sock, config.server, heartbeat=heartbeat, draining=health.draining)


def _unless_hung(heartbeat: Callable[[], None], serves: CurrentRun, hung_s: float) -> Callable[[], None]:
    """Return a heartbeat that stops the worker in order once a user's own stage or channel has hung for `hung_s`, or by chance
    up to twice as long, so that workers whose stages began to hang at once do not all stop at once.
    """
    limit_s = hung_s * uniform(1, 2)

    def beat() -> None:
        heartbeat()
        if serves.engine.pipeline.hung_s > limit_s:
            _logger.error("a stage or channel has not ended for %.0f s; this worker stops and is replaced", limit_s)
            signal.raise_signal(signal.SIGTERM)

    return beat
