"""A server process of which only the port is known, and a plain HTTP client for it. Imports little, as such processes do."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Timer
from time import monotonic
from typing import Any, TypeVar

import msgspec

from pocketrank.device.codec import from_msgpack, to_msgpack

_START_S = 60
_PAUSE_S = 0.01

S = TypeVar("S", bound=msgspec.Struct)
MSGPACK = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}


@dataclass(frozen=True)
class Answer:
    """Status, headers in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Live:
    """A running server."""

    process: subprocess.Popen[str]
    port: int

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def ask(self, path: str, struct: msgspec.Struct, answer: type[S]) -> S:
        got = self.send("POST", path, to_msgpack(struct), MSGPACK)
        assert (got.status, got.headers["content-type"]) == (200, "application/msgpack"), got
        return from_msgpack(got.body, answer)

    def metric(self, sample: str, headers: dict[str, str] | None = None) -> float:
        """The value of one sample, written as Prometheus writes it; 0 where there is none."""
        lines = self.send("GET", "/metrics", headers=headers).body.decode().splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(sample + " ")), 0.0)


@contextmanager
def started(args: list[str], stderr: Path | None = None) -> Iterator[Live]:
    """Run a command that says where it serves, and kill it at the end. What it logs goes to the file `stderr`."""
    with ExitStack() as stack:
        log = None if stderr is None else stack.enter_context(stderr.open("ab"))
        process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=log, text=True)
        guard = Timer(_START_S, process.kill)  # a server that never gets ready ends the wait below
        guard.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            guard.cancel()
            assert line.startswith(("Serving on http://127.0.0.1:", "Serving on https://127.0.0.1:")), (
                f"Expected the line of a ready server, got {line!r}"
            )
            yield Live(process, int(line.rsplit(":", 1)[1]))
        finally:
            guard.cancel()
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def until(condition: Callable[[], object], what: str, within_s: float = _START_S) -> None:
    """Ask again and again; fail when it has not come true in time."""
    ends, never = monotonic() + within_s, Event()
    while not condition():
        assert monotonic() < ends, f"{what} did not come within {within_s:g} s"
        never.wait(_PAUSE_S)
