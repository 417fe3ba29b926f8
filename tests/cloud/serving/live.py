"""A real server of pages in a process of its own."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from device.codec import to_json
from device.contract import BundleManifest, FileEntry, PageRequest
from tests.cloud.serving.running import MSGPACK, Answer, Live, started
from tests.cloud.small_published import SPLIT_VERSION

__all__ = ["JSON", "MSGPACK", "Answer", "Live", "command", "live", "request", "started", "write_bundle"]

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

JSON = {"Content-Type": "application/json", "Accept": "application/json"}


def command(run: Path, db: Path, bundle: Path | None = None, port: int = 0, bytes_max: int | None = None) -> list[str]:
    """The command that serves; the feedback log may take `bytes_max`."""
    return [sys.executable, "-c", _SCRIPT, str(run), str(bundle or ""), str(db), str(port), str(bytes_max or "")]


@contextmanager
def live(run: Path, db: Path, bundle: Path | None = None, bytes_max: int | None = None) -> Iterator[Live]:
    """Start a server on a free port, wait until it says that it is ready, and kill it at the end."""
    with started(command(run, db, bundle, bytes_max=bytes_max)) as running:
        yield running


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
