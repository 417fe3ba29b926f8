import http.client
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pocketrank.sdk_demo.server import ServerError, running_server
from tests.cloud.serving.live import write_bundle
from tests.cloud.small_published import small_run


def _address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def test_it_serves_for_the_block_and_is_gone_after_it(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    bundle = write_bundle(tmp_path / "bundle", {"spec.json": b"{}"})
    with running_server(run.folder, bundle, feedback_db=tmp_path / "feedback.db", said=tmp_path / "said") as url:
        connection = http.client.HTTPConnection(*_address(url), timeout=10)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection(*_address(url), timeout=10).connect()


def test_it_ends_when_its_starter_does(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    bundle = write_bundle(tmp_path / "bundle", {"spec.json": b"{}"})
    command = [
        sys.executable,
        "-m",
        "pocketrank.sdk_demo.server",
        str(run.folder),
        str(bundle),
        str(tmp_path / "feedback.db"),
        "1",
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Serving on http://127.0.0.1:")
        process.stdin.close()  # what the system does when a process is gone
        assert process.wait(30) in (0, -signal.SIGTERM)  # it shuts down in order, then dies of what it was told
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_what_it_said_last_is_in_the_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match="Expected a finished run"),
        running_server(tmp_path / "nowhere", tmp_path, feedback_db=tmp_path / "feedback.db", said=tmp_path / "said"),
    ):
        pass
