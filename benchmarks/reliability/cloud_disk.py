"""A server whose feedback log is on a disk that is full for a while, under a load of feedback and of pages.

The disk is a small tmpfs in a mount namespace of the server's own, which a file of ballast fills to its last byte. Where that
is not available, a limit on the length of the server's files takes its place, and the report says `limit`.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.reliability.cloud_answers import answers, pages, unexpected
from benchmarks.reliability.cloud_devices import Devices, DevicesConfig
from benchmarks.reliability.cloud_kills import kept, read_log
from benchmarks.reliability.cloud_server import CloudServer, ServeOrder
from benchmarks.reliability.open_loop import OpenLoad, OpenPhase
from benchmarks.serving.page_requests import PageRequests
from tests.cloud.small_published import small_run

__all__ = ["DiskConfig", "fill_disk"]

_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


@dataclass(frozen=True)
class DiskConfig:
    """Size of the disk, and how long it is full."""

    bytes: int = 64 << 20
    """Size of the disk: more than the log needs before the disk is filled."""
    page_rps: float = 50.0
    """Requests a second for pages without feedback."""
    before_s: float = 4.0
    """Seconds with room on the disk."""
    full_s: float = 6.0
    """Seconds without room."""
    after_s: float = 6.0
    """Seconds with room again."""
    again_s: float = 60.0
    """Longest wait for feedback to be accepted again."""
    tolerance: float = 0.02
    """Tolerance of a user's vector (`benchmarks.reliability.cloud_kills`)."""
    devices: DevicesConfig = DevicesConfig()


class _Disk(ABC):
    kind: str

    def __init__(self, folder: Path, bytes_: int) -> None:
        self.folder, self.bytes = folder, bytes_

    @property
    def before(self) -> list[str]:
        """Command that runs the server's command."""
        return []

    def seen(self, pid: int, name: str) -> Path:
        """Return the path of a file of the disk as this process sees it."""
        return self.folder / name

    @abstractmethod
    def fill(self, pid: int) -> None:
        """Leave no room."""

    @abstractmethod
    def free(self, pid: int) -> None:
        """Make room again."""


class _Tmpfs(_Disk):
    kind = "tmpfs"

    @property
    def before(self) -> list[str]:
        return ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", str(self.bytes), str(self.folder)]

    def seen(self, pid: int, name: str) -> Path:
        return Path(f"/proc/{pid}/root{self.folder.resolve() / name}")

    def fill(self, pid: int) -> None:
        with suppress(OSError), self.seen(pid, "ballast").open("wb", buffering=0) as file:
            while True:  # the write that reaches the end is cut short, and the next one fails
                file.write(bytes(1 << 16))

    def free(self, pid: int) -> None:
        self.seen(pid, "ballast").unlink()

    @classmethod
    def is_available(cls, folder: Path) -> bool:
        if shutil.which("unshare") is None:
            return False
        tried = subprocess.run([*cls(folder, 1 << 20).before, "true"], capture_output=True, check=False)
        return tried.returncode == 0


class _Limit(_Disk):
    kind = "limit"

    def fill(self, pid: int) -> None:
        self._set(pid, 1 << 12)

    def free(self, pid: int) -> None:
        self._set(pid, resource.RLIM_INFINITY)

    @staticmethod
    def _set(pid: int, bytes_max: int) -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (bytes_max, resource.RLIM_INFINITY))  # Python ignores the signal with it


def fill_disk(work: Path, seed: int, progress: Callable[[float], None], config: DiskConfig | None = None) -> dict[str, Any]:
    """Fill the disk under the log and make room again. Return the report. Raises `BenchmarkError`."""
    config, never = config or DiskConfig(), Event()
    run = small_run(work / "run")
    folder = work / "disk"
    folder.mkdir()
    disk: _Disk = (_Tmpfs if _Tmpfs.is_available(folder) else _Limit)(folder, config.bytes)
    total = config.before_s + config.full_s + config.after_s
    requests = PageRequests(run.published, run.record, seed).requests(200, feedback=False)
    with CloudServer(work / "disk.log", before=disk.before) as server:
        server.start(ServeOrder(run=str(run.folder), log=str(folder / "log.db")))
        devices = Devices(server.port, run.published.item_id[1:], run.record.split_version, seed, config.devices)
        with OpenLoad(work) as load:
            load.begin(server.port, requests, (OpenPhase(config.page_rps, total),), seed=seed)
            began = monotonic()
            devices.start()
            never.wait(config.before_s)
            disk.fill(server.pid)
            full_at, taken = monotonic() - began, devices.counts["batches"]
            progress(config.before_s / total)
            never.wait(config.full_s)
            ready, taken = _ready(server.port), devices.counts["batches"] - taken
            disk.free(server.pid)
            free_at = monotonic() - began
            again_s = _wait_until_accepted(devices, config.again_s)
            progress((config.before_s + config.full_s) / total)
            never.wait(config.after_s)
            devices.finish()
            result = load.wait()
        server.kill()
        for end in ("", "-wal"):
            with suppress(FileNotFoundError):  # folded in
                shutil.copyfile(disk.seen(server.host_pid, f"log.db{end}"), work / f"kept.db{end}")
    found, full = unexpected(result), result.between(full_at, free_at)
    otherwise = sum(n for name, n in devices.counts.items() if name.startswith("status_") and name != "status_503")
    return {
        "unexpected_5xx": found["unexpected_5xx"] + otherwise + devices.counts["malformed"] + devices.counts["broken"],
        **kept(run, devices, read_log(work / "kept.db"), config.tolerance),
        "kind": disk.kind,
        "refused": devices.counts["status_503"],
        "refused_otherwise": otherwise,
        "refused_without_retry_after": devices.counts["without_retry_after"],
        "taken_while_full": taken,
        "taken_again_s": again_s,
        "readyz_while_full": ready,
        "unexpected": found,
        "first_error": result.first_error,
        "pages": answers(result, np.ones(len(result.at), np.bool_)),
        "pages_while_full": pages(result, full),
    }


def _wait_until_accepted(devices: Devices, longest_s: float) -> float:
    """Wait until a batch is acknowledged and return the seconds it took. Raises `BenchmarkError`."""
    since, before, never = monotonic(), devices.counts["batches"], Event()
    while devices.counts["batches"] == before:
        if monotonic() - since > longest_s:
            raise BenchmarkError("feedback", f"to be accepted within {longest_s:g} s after there was room", "none")
        never.wait(0.005)
    return monotonic() - since


def _ready(port: int) -> int:
    connection = HTTPConnection("127.0.0.1", port)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    finally:
        connection.close()
