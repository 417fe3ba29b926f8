"""Processes to be killed that start fast: one that has imported everything forks another for each order that it gets.

What they do comes out of the common standard output, a line each. The first is `pid 123`, the last `end CODE`, below 0 the
signal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import msgspec

__all__ = ["fork_each", "say"]

T = TypeVar("T")


def fork_each(order: type[T], do: Callable[[T], None]) -> None:
    """For each line of standard input, the JSON of an `order`, fork a process that does it; the next one when it has ended."""
    for line in sys.stdin.buffer:
        one = msgspec.json.decode(line, type=order)
        if (pid := os.fork()) == 0:
            code = 1
            try:
                say(f"pid {os.getpid()}")
                do(one)
                code = 0
            finally:
                if code:
                    sys.excepthook(*sys.exc_info())
                os._exit(code)
        say(f"end {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")


def say(line: str) -> None:
    """Write a line at once, and whole: pipes keep short writes together."""
    os.write(1, line.encode() + b"\n")
