"""Servers under measurement: processes pinned to one core, their CPU time and memory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

from benchmarks.errors import BenchmarkError
from benchmarks.processes import own_environment

__all__ = ["Cores", "Host", "ProcessTree", "children", "core_busy_s", "hosted", "on_core"]

_START_S = 120.0
_STOP_S = 15.0
_POLL_S = 0.05
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Cores:
    """Cores of this process: the last one for the server, the first one for everything else. With one core they share it."""

    def __init__(self) -> None:
        allowed = sorted(os.sched_getaffinity(0))
        self.server, self.load = allowed[-1], allowed[0]

    @property
    def shared(self) -> bool:
        """True when the load takes time from the server."""
        return self.server == self.load


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Pin this thread to `core` while the block runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class ProcessTree:
    """A process and all processes that it started. `pid` is 0 while there is none."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @property
    def pids(self) -> list[int]:
        """Ids of the process and its descendants that live, it first."""
        found, new = [], [self.pid] if self.pid else []
        while new:
            found += new
            new = [child for parent in new for child in children(parent)]
        return found

    def cpu_s(self) -> float:
        """Return the CPU seconds of all live processes since their start, in steps of the kernel's 10 ms."""
        return sum(_cpu_s(pid) for pid in self.pids)

    def memory_bytes(self) -> int:
        """Return the proportional set size of all processes: a page that several map is divided among them."""
        return sum(_memory_bytes(pid) for pid in self.pids)


class Host(ProcessTree):
    """A running server."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], port: int, core: int) -> None:
        super().__init__(process.pid)
        self.name, self.process, self.port, self.core = name, process, port, core

    def core_busy_s(self) -> float:
        """Return the seconds that the server's core was busy since the machine started, for any process."""
        return core_busy_s(self.core)


def core_busy_s(core: int) -> float:
    """Return the seconds that a core was busy since the machine started, for any process."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _, _, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) * _TICK_S
    return 0.0


@contextmanager
def hosted(name: str, called: str, arguments: Sequence[str], core: int, probe: bytes, work: Path) -> Iterator[Host]:
    """Run `python -m benchmarks.serving.subjects CORE PORT *arguments`; the block begins when it answers `probe` with 200.

    Raises `BenchmarkError` when it never does. What the server prints is in `called`.log in `work`.
    """
    port, log = _free_port(), work / f"{called}.log"
    command = [sys.executable, "-m", "benchmarks.serving.subjects", str(core), str(port), *arguments]
    environment = own_environment(OMP_NUM_THREADS="1")
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=work, env=environment)
    host = Host(name, process, port, core)
    try:
        _wait_until_ready(host, probe, log)
        yield host
    finally:
        _stop(host)


def _wait_until_ready(host: Host, probe: bytes, log: Path) -> None:
    until, answer = monotonic() + _START_S, b""
    while monotonic() < until and host.process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", host.port), timeout=_START_S) as sock:
            sock.sendall(probe)
            answer = sock.recv(1 << 16)
            if answer.startswith(b"HTTP/1.1 200"):
                return
        sleep(_POLL_S)
    got = answer[:300].decode(errors="replace") or "no answer"
    raise BenchmarkError(host.name, f"an answer within {_START_S:.0f} s", f"{got}; it logged: {log.read_text()[-2000:]}")


def _stop(host: Host) -> None:
    """Stop the server with SIGTERM, wait for it, and kill those of its processes that it left, by their ids."""
    pids = host.pids
    host.process.terminate()
    try:
        host.process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        host.process.kill()
        host.process.wait()
    for pid in pids[1:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def children(pid: int) -> list[int]:
    """Return the live processes that a process started."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process since its start, in steps of the kernel's 10 ms; 0 when it has ended."""
    with suppress(OSError):
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) * _TICK_S  # utime and stime, fields 14 and 15
    return 0.0


def _memory_bytes(pid: int) -> int:
    """Return the proportional set size of a process in bytes; 0 when it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
