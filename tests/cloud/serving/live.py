"""A real server in a process of its own, and a plain HTTP client for it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from threading import Timer
from typing import Any, TypeVar

import msgspec

from device.codec import from_msgpack, to_json, to_msgpack
from device.contract import BundleManifest, FileEntry, PageRequest
from tests.cloud.small_published import SPLIT_VERSION

_SCRIPT = """
import sys
from pathlib import Path
from cloud.serving.config import ServingConfig
from cloud.serving.serve import serve
from cloud.streams.sqlite import SqliteLogConfig
from cloud.training.run import Run
run, bundle, db, port, bytes_max = sys.argv[1:]
config = ServingConfig(log=SqliteLogConfig(bytes_max=int(bytes_max) if bytes_max else None))
serve(Run.open(Path(run)), Path(bundle) if bundle else None, port=int(port), feedback_db=Path(db), config=config)
"""
_START_S = 60

S = TypeVar("S", bound=msgspec.Struct)
MSGPACK = {"Content-Type": "application/msgpack"}
JSON = {"Content-Type": "application/json", "Accept": "application/json"}


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

    def metric(self, sample: str) -> float:
        """The value of one sample, written as Prometheus writes it; 0 where there is none."""
        lines = self.send("GET", "/metrics").body.decode().splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(sample + " ")), 0.0)


def command(run: Path, db: Path, bundle: Path | None = None, port: int = 0, bytes_max: int | None = None) -> list[str]:
    """The command that serves; the feedback log may take `bytes_max`."""
    return [sys.executable, "-c", _SCRIPT, str(run), str(bundle or ""), str(db), str(port), str(bytes_max or "")]


@contextmanager
def live(run: Path, db: Path, bundle: Path | None = None, bytes_max: int | None = None) -> Iterator[Live]:
    """Start a server on a free port, wait until it says that it is ready, and kill it at the end."""
    with started(command(run, db, bundle, bytes_max=bytes_max)) as running:
        yield running


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
            assert line.startswith("Serving on http://127.0.0.1:"), f"the server said {line!r}"
            yield Live(process, int(line.rsplit(":", 1)[1]))
        finally:
            guard.cancel()
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def request(user_id: int = 1, size: int = 10, **more: Any) -> PageRequest:
    """A page request with vectors unless said otherwise."""
    fields: dict[str, Any] = {
        "request_id": "r",
        "user_id": user_id,
        "session_id": "s",
        "now_ms": 1_700_000_000_000,
        "size": size,
        "split_version": SPLIT_VERSION,
    }
    return PageRequest(**{**fields, **more})


def write_bundle(folder: Path, files: dict[str, bytes], split_version: str = SPLIT_VERSION, **wrong: Any) -> Path:
    """A bundle of `files`; `wrong` replaces fields of the first file's entry."""
    entries = []
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        entries.append(FileEntry(path=path, bytes=len(data), sha256=sha256(data).hexdigest()))
    if wrong:
        entries[0] = msgspec.structs.replace(entries[0], **wrong)
    manifest = BundleManifest(
        name="small", serial=1, created_ms=0, split_version=split_version, spec="spec.json", files=tuple(entries), models=()
    )
    (folder / "manifest.json").write_bytes(to_json(manifest))
    return folder
