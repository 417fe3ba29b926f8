"""A command that runs beside a server for as long as that does."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread

__all__ = ["beside"]

_STOP_S = 10.0
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)

_logger = logging.getLogger(__name__)


@contextmanager
def beside(command: Sequence[str]) -> Iterator[None]:
    """Run `command` in the block, and again whenever it ends before. It ends by itself when this process is killed, if it
    watches its parent where `POCKETRANK_PARENT` is set."""
    stop = Event()
    thread = Thread(target=_keep, args=(list(command), stop), name="pocketrank-beside", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _keep(command: list[str], stop: Event) -> None:
    deaths = 0
    while not stop.is_set():
        process = subprocess.Popen(command, env=os.environ | {"POCKETRANK_PARENT": str(os.getpid())}, start_new_session=True)
        while process.poll() is None and not stop.wait(0.1):
            pass
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        elif not stop.is_set():
            pause_s = _BACKOFF_S[min(deaths, len(_BACKOFF_S) - 1)]
            _logger.error("`%s` ended with exit code %s; it is started again in %g s", command[3], process.returncode, pause_s)
            deaths += 1
            stop.wait(pause_s)
