"""A server whose feedback log is on a disk that is full for a while, under a load of feedback and of pages.

The disk is a small tmpfs in a mount namespace of the server's own, which a file of ballast fills to its last byte. Where that
is not available, a limit on the length of the server's files takes its place, and the report says `limit`.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import numpy as np

from benchmarks.processes import wait_until
from benchmarks.reliability.cloud_devices import Devices
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


class _Limit:
    """A limit on the length of the server's files."""

    kind = "limit"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before: list[str] = []
        """Command that runs the server's command."""

    def seen(self, pid: int, name: str) -> Path:
        """Return the path of a file of the disk as this process sees it."""
        return self.folder / name

    def fill(self, pid: int) -> None:
        """Leave no room."""
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 12, resource.RLIM_INFINITY))  # Python ignores the signal with it

    def free(self, pid: int) -> None:
        """Make room again."""
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class _Tmpfs(_Limit):
    kind = "tmpfs"

    def __init__(self, folder: Path, bytes_: int) -> None:
        super().__init__(folder)
        self.before = ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", str(bytes_), str(folder)]

    def seen(self, pid: int, name: str) -> Path:
        return Path(f"/proc/{pid}/root{self.folder.resolve() / name}")

    def fill(self, pid: int) -> None:
        with suppress(OSError), self.seen(pid, "ballast").open("wb", buffering=0) as file:
            while True:  # the write that reaches the end is cut short, and the next one fails
                file.write(bytes(1 << 16))

    def free(self, pid: int) -> None:
        self.seen(pid, "ballast").unlink()

    def is_available(self) -> bool:
        tried = [*self.before, "true"]
        return shutil.which("unshare") is not None and not subprocess.run(tried, capture_output=True, check=False).returncode


def fill_disk(work: Path, seed: int, progress: Callable[[float], None], config: DiskConfig | None = None) -> dict[str, Any]:
    """Fill the disk under the log and make room again. Return the report. Raises `BenchmarkError`."""
    config = config or DiskConfig()
    run = small_run(work / "run")
    folder = work / "disk"
    folder.mkdir()
    tmpfs = _Tmpfs(folder, config.bytes)
    disk = tmpfs if tmpfs.is_available() else _Limit(folder)
    total = config.before_s + config.full_s + config.after_s
    requests = PageRequests(run.published, run.record, seed).requests(200, feedback=False)
    with CloudServer(work / "disk.log", before=disk.before) as server:
        server.start(ServeOrder(run=str(run.folder), log=str(folder / "log.db")))
        with OpenLoad(work) as load:
            load.begin(server.port, requests, (OpenPhase(config.page_rps, total),), seed=seed)
            began = monotonic()
            devices = Devices(server.port, run.published.item_id[1:], run.record.split_version, seed)
            sleep(config.before_s)
            disk.fill(server.pid)
            full_at, taken = monotonic() - began, devices.counts["batches"]
            progress(config.before_s / total)
            sleep(config.full_s)
            ready = httpx.get(f"http://127.0.0.1:{server.port}/readyz", timeout=30.0, trust_env=False).status_code
            taken = devices.counts["batches"] - taken
            disk.free(server.pid)
            free_at = monotonic() - began
            before = devices.counts["batches"]
            again_s = wait_until(
                lambda: devices.counts["batches"] > before, config.again_s, "feedback with room again", "to be accepted"
            )
            progress((config.before_s + config.full_s) / total)
            sleep(config.after_s)
            devices.finish()
            result = load.wait()
        server.kill()
        for end in ("", "-wal"):
            with suppress(FileNotFoundError):  # folded in
                shutil.copyfile(disk.seen(server.host.pid, f"log.db{end}"), work / f"kept.db{end}")
    found, full = result.unexpected(), result.between(full_at, free_at)
    otherwise = sum(n for name, n in devices.counts.items() if name.startswith("status_") and name != "status_503")
    return {
        "unexpected_5xx": found["unexpected_5xx"] + otherwise + devices.counts["malformed"] + devices.counts["broken"],
        **kept(run, devices, read_log(work / "kept.db")),
        "kind": disk.kind,
        "refused": devices.counts["status_503"],
        "refused_otherwise": otherwise,
        "refused_without_retry_after": devices.counts["without_retry_after"],
        "taken_while_full": taken,
        "taken_again_s": again_s,
        "readyz_while_full": ready,
        "unexpected": found,
        "first_error": result.first_error,
        "pages": result.answers(np.ones(len(result.at), np.bool_)),
        "pages_while_full": result.pages(full),
    }
