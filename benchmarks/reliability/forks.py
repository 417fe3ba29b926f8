"""Processes that are killed and start fast: one that has imported everything forks another for each order it reads.

A forked process reports on the common standard output, one line for each event. The first line is `pid 123`, the last
`end CODE`; a code below 0 is the signal that ended it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import msgspec

__all__ = ["fork_each", "report"]

T = TypeVar("T")


def fork_each(order: type[T], do: Callable[[T], None]) -> None:
    """Fork a process for each line of standard input, the JSON of an `order`, and wait for its end before the next one."""
    for line in sys.stdin.buffer:
        one = msgspec.json.decode(line, type=order)
        if (pid := os.fork()) == 0:
            code = 1
            try:
                report(f"pid {os.getpid()}")
                do(one)
                code = 0
            finally:
                if code:
                    sys.excepthook(*sys.exc_info())
                os._exit(code)
        report(f"end {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")


def report(line: str) -> None:
    """Write a line at once. It stays whole, because pipes keep short writes together."""
    os.write(1, line.encode() + b"\n")
