"""A disk under a process that keeps only what was synced, as `disk.c` beside this file models it, and its power cuts."""

import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

__all__ = ["Disk", "Writer", "disk_of"]

_BLOCK = 4096
_SOURCE = Path(__file__).with_name("disk.c")
_COMPILER = shutil.which("cc") or shutil.which("gcc")


class Writer:
    """A process on a `Disk`, and the lines that it printed."""

    def __init__(self, process: subprocess.Popen[str], output: IO[str]) -> None:
        self._process, self._output = process, output

    def read(self, lines: int) -> list[str]:
        """Return the next `lines`, fewer at the end."""
        return [line for line, _ in zip(self._output, range(lines), strict=False)]

    def kill(self) -> list[str]:
        """Kill it with -9 and return the rest of what it printed."""
        self._process.kill()
        return [line for line in self._output if line.endswith("\n")]


class Disk:
    """The folder `root`, and what a power cut leaves of it."""

    def __init__(self, work: Path, library: Path) -> None:
        self.root, self._kept, self._library = work / "disk", work / "kept", library
        for folder in (self.root, self._kept / "files", self._kept / "folders"):
            folder.mkdir(parents=True)

    @contextmanager
    def process(self, code: str, *arguments: str) -> Iterator[Writer]:
        """Run Python's `code` on the disk; it is killed at the end of the block."""
        environment = {"LD_PRELOAD": str(self._library), "POWER_ROOT": str(self.root), "POWER_DISK": str(self._kept)}
        command = [sys.executable, "-c", code, str(self.root), *arguments]
        with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield Writer(process, process.stdout)
            finally:
                process.kill()

    def after_cut(self, to: Path, rng: random.Random | None = None) -> Path:
        """Write to the new folder `to` what a power cut leaves, and return it.

        That is what was synced alone or, with `rng`, any part of what was written since beside it: single names, and single
        blocks of files.
        """
        self._folder(self.root.stat().st_ino, self.root, to, rng)
        return to

    def _folder(self, inode: int, now: Path | None, to: Path, rng: random.Random | None) -> None:
        to.mkdir()
        listed = self._kept / "folders" / str(inode)
        entries = [line.partition(" ") for line in listed.read_bytes().decode().split("\0")[:-1]] if listed.exists() else []
        names = {name: int(number) for number, _, name in entries}
        if rng is not None and now is not None:
            current = {path.name: path.stat().st_ino for path in now.iterdir()}
            both = sorted(names.keys() | current.keys())
            names = {name: found for name in both if (found := rng.choice((names, current)).get(name))}
        files = {path.stat().st_ino: path for path in self.root.rglob("*")}
        for name, number in names.items():
            path = files.get(number)
            if (self._kept / "folders" / str(number)).exists() or (path and stat.S_ISDIR(path.stat().st_mode)):
                self._folder(number, path, to / name, rng)
            else:
                (to / name).write_bytes(self._content(number, path, rng))

    def _content(self, inode: int, now: Path | None, rng: random.Random | None) -> bytes:
        kept = self._kept / "files" / str(inode)
        synced = kept.read_bytes() if kept.exists() else b""
        if rng is None or now is None:
            return synced
        written = now.read_bytes()
        length = len(rng.choice((synced, written)))
        blocks = (rng.choice((synced, written))[at : at + _BLOCK] for at in range(0, length, _BLOCK))
        return b"".join(block.ljust(_BLOCK, b"\0") for block in blocks)[:length]


def disk_of(work: Path) -> Disk:
    """Return a disk in the new folder `work`. Skips the test without a C compiler or without `LD_PRELOAD`."""
    if sys.platform != "linux" or _COMPILER is None:
        pytest.skip("no C compiler, or no LD_PRELOAD: power cuts are not tested")
    work.mkdir()
    library = work / "disk.so"
    subprocess.run([_COMPILER, "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE), "-ldl"], check=True)
    return Disk(work, library)
