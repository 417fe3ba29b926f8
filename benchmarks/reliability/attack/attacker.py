"""The process of an attacker: `python -m benchmarks.reliability.attack.attacker CORE`.

It reads an `AttackOrder` a line and answers each with what it did, as JSON.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from benchmarks.reliability.attack import connections, feedback, speaking
from benchmarks.reliability.attack.wire import AttackOrder

__all__ = ["ATTACKS", "main"]

ATTACKS: dict[str, Callable[[AttackOrder], dict[str, Any]]] = {
    "endless_heads": connections.endless_heads,
    "silence": connections.silence,
    "silence_of_many": connections.silence,
    "unfinished": connections.unfinished,
    "unread_downloads": connections.unread_downloads,
    "unread_pages": connections.unread_pages,
    "nonsense": connections.nonsense,
    "experiments": feedback.experiments,
    "events": feedback.events,
    "events_of_one_user": feedback.events_of_one_user,
    "bombs_of_telemetry": feedback.bombs_of_telemetry,
    "bombs_of_excludes": feedback.bombs_of_excludes,
    "steady_feedback": feedback.steady_feedback,
    "spoofing": speaking.spoofing,
    "guessed_ids": speaking.guessed_ids,
    "publishing": speaking.publishing,
}
"""Attacks that a process of an attacker can run, by name."""
_NICE = 10
"""The load of honest devices shares a core with the attacker, and goes first."""


def main(arguments: Sequence[str]) -> None:
    """Carry out the orders from standard input, one after the other."""
    os.sched_setaffinity(0, {int(arguments[0])})
    os.nice(_NICE)
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=AttackOrder)
        print(msgspec.json.encode(ATTACKS[order.attack](order)).decode(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
