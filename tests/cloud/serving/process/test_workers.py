"""Real supervisors and workers with small applications, ended in every way."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Timer

import pytest

from pocketrank.cloud.serving.process.workers import WorkersConfig, run_workers

_BOUND_S = 60


class Supervisor:
    def __init__(self, target: str, workers: int, folder: Path, *more: str) -> None:
        command = [sys.executable, "-m", "tests.cloud.serving.small_apps", target, str(workers), str(folder), *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.port = 0

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Serving on http://127.0.0.1:"), line
        self.port = int(line.rsplit(":", 1)[1])

    def ask(self, path: str = "/") -> int:
        """Return the process id of the worker that answered."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_BOUND_S)
        try:
            connection.request("GET", path)
            return int(connection.getresponse().read())
        finally:
            connection.close()

    def workers(self) -> set[int]:
        """Return the process ids of both workers, by asking until both have answered."""
        found: set[int] = set()
        until(lambda: len(found.add(self.ask()) or found) == 2)  # type: ignore[func-returns-value]
        return found

    def end(self) -> tuple[int, str, str]:
        """Return the exit code and the remaining output."""
        out, err = self.process.communicate(timeout=_BOUND_S)
        return self.process.returncode, out, err


@contextmanager
def supervisor(target: str, workers: int, folder: Path, *more: str) -> Iterator[Supervisor]:
    started = Supervisor(target, workers, folder, *more)
    guard = Timer(2 * _BOUND_S, started.process.kill)
    guard.start()
    try:
        yield started
    finally:
        guard.cancel()
        started.process.kill()
        started.process.communicate()


def until(holds: Callable[[], bool]) -> None:
    """Wait until the condition holds, for a minute at most."""
    never = Event()
    for _ in range(100 * _BOUND_S):
        if holds():
            return
        never.wait(0.01)
    raise AssertionError("the condition never held")


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # Without an init process that reaps, an orphan stays a zombie; it has ended all the same.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_workers_share_the_port_and_end_in_order(tmp_path: Path) -> None:
    with supervisor("place", 2, tmp_path) as server:
        server.wait_ready()
        workers = server.workers()
        assert {path.name for path in tmp_path.glob("place-*")} == {"place-0", "place-1"}
        server.process.send_signal(signal.SIGTERM)
        code, out, err = server.end()
        assert (code, out, err) == (0, "", "")  # the URL was printed once, and nothing else
        assert all(gone(pid) for pid in workers)
        with pytest.raises(ConnectionRefusedError):
            server.ask()


def test_connections_made_at_once_are_spread(tmp_path: Path) -> None:
    with supervisor("serve_pid", 2, tmp_path) as server:
        server.wait_ready()
        server.workers()
        with ThreadPoolExecutor(32) as pool:
            answered = list(pool.map(lambda _: server.ask(), range(64)))
        assert min(answered.count(pid) for pid in set(answered)) >= 4
        assert len(set(answered)) == 2


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_accepted_requests_are_finished_and_new_ones_refused(tmp_path: Path, sign: signal.Signals) -> None:
    if signal.getsignal(sign) == signal.SIG_IGN:
        pytest.skip("the tests were started by nohup, whose children ignore a hangup")
    with supervisor("serve_pid", 2, tmp_path) as server, ThreadPoolExecutor(8) as pool:
        server.wait_ready()
        server.workers()
        under_way = [pool.submit(server.ask, f"/when?file={tmp_path}/{i}") for i in range(8)]
        until(lambda: len(list(tmp_path.glob("*.begun"))) == 8)
        server.process.send_signal(sign)

        def refused() -> bool:
            try:
                server.ask()
            except OSError:
                return True
            return False

        until(refused)
        assert not any(job.done() for job in under_way)
        for i in range(8):
            (tmp_path / str(i)).touch()
        assert len({job.result(_BOUND_S) for job in under_way}) >= 1
        assert server.end() == (0, "", "")


def test_a_killed_worker_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    with supervisor("serve_pid", 2, tmp_path) as server:
        server.wait_ready()
        killed, other = server.workers()
        os.kill(killed, signal.SIGKILL)
        until(lambda: (tmp_path / "gone").exists() and len(list((tmp_path / "gone").iterdir())) == 1)
        assert server.ask() in (other, *server.workers())
        assert killed not in server.workers()
        server.process.terminate()
        code, _, err = server.end()
        assert code == 0
        assert "ended with exit code -9; it is restarted in 0.0 s" in err


def test_a_worker_whose_event_loop_is_blocked_is_replaced(tmp_path: Path) -> None:
    with supervisor("serve_pid", 2, tmp_path, "hung_s=2") as server:
        server.wait_ready()
        before, hung = server.workers(), tmp_path / "hung"
        with socket.create_connection(("127.0.0.1", server.port), timeout=_BOUND_S) as connection:
            connection.sendall(f"GET /hang?file={hung} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert connection.recv(1) == b"", "the connection ends with its worker"
        killed = int(hung.read_text())
        until(lambda: gone(killed))
        assert server.workers() & before == before - {killed}, "the other one goes on, and a new one answers"
        server.process.terminate()
        code, _, err = server.end()
        assert code == 0
        assert "is hung: its event loop was blocked for 2 s; it is killed" in err
        assert "ended with exit code -9; it is restarted in 0.0 s" in err


def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    with supervisor("serve_pid", 2, tmp_path) as server:
        server.wait_ready()
        workers = server.workers()
        server.process.kill()
        server.process.wait()
        until(lambda: all(gone(pid) for pid in workers))
        with pytest.raises(ConnectionRefusedError):
            server.ask()


def test_a_worker_that_cannot_start_ends_the_server_at_once(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with supervisor("serve_pid", 2, tmp_path) as server:
        code, out, err = server.end()
    assert (code, out) == (1, "")
    assert "WorkerStartError: Expected worker" in err
    assert "to start, got exit code 3" in err


def test_the_supervisor_gives_up_after_repeated_deaths(tmp_path: Path) -> None:
    with supervisor("die", 1, tmp_path) as server:
        code, _, err = server.end()
    assert code == 1
    assert "WorkerStartError: Expected worker 0 to live, got 3 deaths in a row, the last with exit code 4." in err


def test_the_supervisor_gives_up_a_worker_that_no_longer_starts_after_some_tries(tmp_path: Path) -> None:
    with supervisor("serve_pid", 1, tmp_path) as server:
        server.wait_ready()
        (tmp_path / "broken").touch()
        os.kill(server.ask(), signal.SIGKILL)
        code, _, err = server.end()
    assert code == 1
    assert "got 3 deaths in a row, the last with exit code 3" in err


@pytest.mark.parametrize(("stop_s", "signals"), [("0.3", 1), ("600", 2)])
def test_a_worker_that_ignores_sigterm_is_killed_in_time_or_at_the_second_signal(
    tmp_path: Path, stop_s: str, signals: int
) -> None:
    with supervisor("stuck", 2, tmp_path, f"stop_s={stop_s}") as server:
        server.wait_ready()
        workers = [int(path.name.removeprefix("stuck-")) for path in tmp_path.glob("stuck-*")]
        server.process.terminate()
        if signals == 2:
            until(lambda: len(list(tmp_path.glob("terminated-*"))) == 2)
            server.process.terminate()
        code, _, err = server.end()
    assert code == 1
    assert "WorkerStopError: Expected workers to end within" in err
    assert len(workers) == 2
    assert all(gone(pid) for pid in workers)


def test_workers_still_accept_while_they_drain(tmp_path: Path) -> None:
    with supervisor("serve_pid", 2, tmp_path, "drain_s=600", "stop_s=0.5") as server:
        server.wait_ready()
        workers = server.workers()
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        until(lambda: len(list(tmp_path.glob("draining-*"))) == 2)
        assert server.ask() in workers


@pytest.mark.parametrize("wrong", [{"backoff_s": 0.0}, {"deaths_max": 0}, {"stop_s": -1.0}])
def test_invalid_times_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected times > 0"):
        WorkersConfig(**wrong)  # type: ignore[arg-type]


def test_no_workers_are_refused() -> None:
    with socket.socket() as sock, pytest.raises(ValueError, match="at least one worker, got 0"):
        run_workers("tests.cloud.serving.small_apps:serve_pid", (), sock, 0)
