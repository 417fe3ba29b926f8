"""The process that asks whether the server lives, as an orchestrator does: `python -m benchmarks.reliability.attack.prober`.

Each probe of `/livez` is on a connection of its own. It reads a `ProbeOrder` a line and answers each with `begun` and, in the
end, `Probes`.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter, sleep

import msgspec

__all__ = ["ProbeOrder", "Probes", "main"]

_REQUEST = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


class ProbeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Order to probe."""

    port: int
    stop: str
    """File that ends the probes when somebody makes it."""
    every_s: float = 0.05
    """Time between two probes."""
    patience_s: float = 5.0
    """Time after which a probe has failed."""


class Probes(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of n probes in the order of their start."""

    at: tuple[float, ...]
    """When it began, by `perf_counter`, which all processes of a machine share."""
    ms: tuple[float, ...]
    """Time until its answer, or until it failed."""
    ok: tuple[bool, ...]
    """Whether the answer was 200."""

    def window(self, since: float, until: float) -> tuple[float, int]:
        """Return the longest time in ms and the number of failures of the probes that began from `since` and before `until`."""
        chosen = [i for i, at in enumerate(self.at) if since <= at < until]
        return max((self.ms[i] for i in chosen), default=0.0), sum(not self.ok[i] for i in chosen)


def main(arguments: Sequence[str]) -> None:
    """Carry out the orders from standard input, one after the other."""
    os.sched_setaffinity(0, {int(arguments[0])})
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=ProbeOrder)
        print("begun", flush=True)
        print(msgspec.json.encode(_probe(order)).decode(), flush=True)


def _probe(order: ProbeOrder) -> Probes:
    found: list[tuple[float, float, bool]] = []
    while not Path(order.stop).exists():
        at = perf_counter()
        ok = _is_alive(order)
        found.append((at, 1e3 * (perf_counter() - at), ok))
        sleep(max(0.0, at + order.every_s - perf_counter()))
    at_, ms, oks = zip(*found, strict=True)
    return Probes(at=at_, ms=ms, ok=oks)


def _is_alive(order: ProbeOrder) -> bool:
    answer = b""
    with suppress(OSError), socket.create_connection(("127.0.0.1", order.port), timeout=order.patience_s) as sock:
        sock.sendall(_REQUEST)
        answer = sock.recv(1 << 12)
    return answer.startswith(b"HTTP/1.1 200")


if __name__ == "__main__":
    main(sys.argv[1:])
