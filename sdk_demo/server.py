"""A page server in a process of its own, for as long as a `with` block lasts.

`python -m pocketrank.sdk_demo.server RUN BUNDLE DB PRICE` is that process. It serves until its standard input ends, which
happens when the process that started it ends for whatever reason: no server outlives a demo that was killed.

Errors::

    ServerError                the server did not get ready; has the last line of its log
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread, Timer

__all__ = ["ServerError", "main", "running_server"]

_READY = "Serving on "
_READY_S = 60
_STOP_S = 15
_NEVER_MS = 60_000.0


class ServerError(RuntimeError):
    """The server did not get ready."""


@contextmanager
def running_server(run: Path, bundle: Path, *, feedback_db: Path, said: Path, price: float = 1.0) -> Iterator[str]:
    """Serve `run` and `bundle` on a free port of this machine, and yield the URL.

    The compute price is `price` whatever the load, so that equal seeds give equal sessions. The server's stderr is written to
    the file `said`. Raises `ServerError` when the server ends, or is not ready within a minute. The process has ended when the
    block has.
    """
    command = [sys.executable, "-m", "pocketrank.sdk_demo.server", str(run), str(bundle), str(feedback_db), str(price)]
    with said.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    too_long = Timer(_READY_S, process.kill)  # a server that never gets ready ends the wait below
    too_long.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        too_long.cancel()
        if not line.startswith(_READY):
            raise ServerError(f"The server did not get ready: {_last_line(said) or 'its log is empty'}")
        yield line.removeprefix(_READY).strip()
    finally:
        too_long.cancel()
        _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _last_line(log: Path) -> str:
    """Return the last line of the server's log."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def main(argv: Sequence[str]) -> None:
    """Serve RUN with BUNDLE, feedback in DB, pages at PRICE, on a free port, until standard input ends or SIGTERM arrives."""
    from pocketrank.cloud.pipeline.config import BudgetConfig, PipelineConfig
    from pocketrank.cloud.serving.config import ServingConfig
    from pocketrank.cloud.serving.load.price import PriceConfig
    from pocketrank.cloud.serving.process.serve import serve
    from pocketrank.cloud.training.run import Run

    run, bundle, feedback_db = (Path(argument) for argument in argv[:3])
    price = PriceConfig(price_min=float(argv[3]), price_max=float(argv[3]))
    Thread(target=_end_with_input, daemon=True).start()
    # Pages are complete however busy the machine is: equal seeds give equal sessions.
    pipeline = PipelineConfig(limits=BudgetConfig(page_ms=_NEVER_MS, queue_ms=_NEVER_MS))
    config = ServingConfig(pipeline=pipeline, price=price)
    serve(Run.open(run), bundle, port=0, feedback_db=feedback_db, config=config)


def _end_with_input() -> None:
    while os.read(0, 4096):  # not sys.stdin, whose lock would block the end of the interpreter
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
