"""A real MLflow server on loopback, from the environment of its own that `make test` makes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from tests.cloud.serving.running import until

PROGRAM = Path(sys.prefix) / "mlflow" / "bin" / "mlflow"
_START_S = 120.0


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The address of a server whose database and artifacts are in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"file://{folder}/artifacts")
    command = [PROGRAM, "server", *store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    quiet.pop("PYTHONPATH", None)
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=quiet, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert server.poll() is None, (folder / "server.log").read_text()
        try:
            with urlopen(f"{address}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        until(ready, "MLflow", _START_S)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
