"""A file of secrets or keys that only its owner may read, and that is read again when it has changed.

Errors::

    TokenFileError             not the file that was expected, missing, unreadable, or accessible to others; names the file
"""

from __future__ import annotations

import logging
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic, time
from typing import ClassVar, Generic, TypeVar

from pocketrank.device.contract import MismatchError

__all__ = ["SecretFile", "TokenFileError", "read_secret_file"]

_OTHERS = stat.S_IWGRP | stat.S_IRWXO  # a secret that Kubernetes mounts is readable by the pod's group
_BYTES_MAX = 64 << 20
_SETTLED_S = 1.0
"""Age from which an unchanged modification time proves an unchanged file: a second change within one tick of the file system's
clock leaves it as it was."""

_logger = logging.getLogger(__name__)

T = TypeVar("T")


class TokenFileError(MismatchError, ValueError):
    """A file that is not one of tokens or of keys, missing, unreadable, or accessible to others. The message never holds a
    secret.
    """


class SecretFile(ABC, Generic[T]):
    """The current content of the file at `path`. Raises `TokenFileError` when it cannot be read at the start.

    If the file vanishes or becomes unreadable later, its content of before stays valid, and an error is logged: nothing new is
    accepted, and an editor that is saving the file locks nobody out. `clock` returns Unix time, `ticks` is monotonic; both in
    seconds. A change is noticed within `check_every_s`, and a check costs some microseconds. For the one thread of an event
    loop.
    """

    _holds: ClassVar[str]
    """What the file holds, in the singular, for errors."""

    def __init__(
        self,
        path: Path,
        *,
        check_every_s: float = 1.0,
        clock: Callable[[], float] = time,
        ticks: Callable[[], float] = monotonic,
    ) -> None:
        self._path, self._check_every_s = path, check_every_s
        self._clock, self._ticks = clock, ticks
        self._stamp: tuple[int, ...] | None = None
        self._error: TokenFileError | None = None
        self._content = self._read()
        self._check_at = ticks() + check_every_s

    @abstractmethod
    def _decode(self, data: bytes) -> T:
        """Return the content of the file's bytes. Raises `TokenFileError`."""

    def check_file(self) -> None:
        """Raise `TokenFileError` while the file cannot be read again; what was read last stays valid."""
        if self._error is not None:
            raise self._error.with_traceback(None)

    def _refresh_in_time(self) -> None:
        """Read the file again if it has changed, at most once in `check_every_s`."""
        if (ticks := self._ticks()) >= self._check_at:
            self._check_at = ticks + self._check_every_s
            self._refresh()

    def _refresh(self) -> None:
        with suppress(OSError):  # which `_read` reports
            if self._error is None and _stamp(os.stat(self._path)) == self._stamp:
                return
        known = self._error
        try:
            self._content = self._read()
        except TokenFileError as error:
            self._error = error
            if str(error) != str(known):  # log a fault once, not at every check
                _logger.error("the %s file cannot be read; its %ss of before stay valid: %s", self._holds, self._holds, error)
        else:
            self._error = None
            if known is not None:
                _logger.warning("the %s file can be read again", self._holds)

    def _read(self) -> T:
        data, status = read_secret_file(self._path, f"a file of {self._holds}s")
        content = self._decode(data)
        self._stamp = _stamp(status) if abs(self._clock() - status.st_mtime) > _SETTLED_S else None
        return content


def read_secret_file(path: Path, expected: str) -> tuple[bytes, os.stat_result]:
    """Return the file's bytes and its status. Raises `TokenFileError`, also when others may change or read the file.

    `expected` says in errors what the file should be.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if os.name == "posix" and status.st_mode & _OTHERS:
                raise TokenFileError(path, "a file that only its owner may read and write (chmod 600)", "one that others may")
            data = file.read(_BYTES_MAX + 1)
    except OSError as error:
        raise TokenFileError(path, expected, error.strerror or type(error).__name__) from error
    if len(data) > _BYTES_MAX:
        raise TokenFileError(path, f"at most {_BYTES_MAX} bytes", "more")
    return data, status


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev
