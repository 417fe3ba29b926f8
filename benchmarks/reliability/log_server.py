"""A feedback server in a process of its own, which is killed: `python -m benchmarks.reliability.log_server FILE PORT`.

The log is that of `pocketrank.cloud.serving`, behind a plain HTTP server: the whole serving application takes seconds to
start, and this one is restarted many times. It does not sync the disk, because no power is cut here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from threading import Event

from benchmarks.processes import OrderedProcess
from benchmarks.reliability.faulty_cloud import FaultyCloud
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig

__all__ = ["LogServer", "main"]


class LogServer:
    """Process of the server. It restarts on the same port."""

    def __init__(self, log: Path) -> None:
        self._log, self._port = log, 0
        self._process: OrderedProcess | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the server unless it runs, and wait until it serves. Raises `BenchmarkError`."""
        if self._process is not None:
            return
        self._process = OrderedProcess("benchmarks.reliability.log_server", str(self._log), str(self._port))
        self._port = int(self._process.read_line().rsplit(":", 1)[1])

    def kill(self) -> None:
        """Kill the server with -9."""
        if self._process is not None:
            self._process.close()
            self._process = None


def main(log: str, port: str) -> None:
    """Serve until killed."""
    kept = SqliteFeedbackLog(Path(log), SqliteLogConfig(full_sync=False))
    with FaultyCloud(log=kept).serving(int(port)) as url:
        print(url, flush=True)
        Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
