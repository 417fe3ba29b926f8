"""A full disk, imitated by a limit on the length of files."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["full_disk"]


@contextmanager
def full_disk(bytes_max: int = 0) -> Iterator[None]:
    """Let no file of this process grow past `bytes_max` while the block runs. The failed write is the system's own error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, hard))  # Python ignores the signal that is sent too
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
