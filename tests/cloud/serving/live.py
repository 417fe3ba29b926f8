"""A real server of pages in a process of its own."""

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from pocketrank.cloud.pipeline.config import PipelineConfig
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.streams.sqlite import SqliteLogConfig
from pocketrank.device.codec import to_json
from pocketrank.device.contract import BundleManifest, FileEntry, PageRequest
from tests.cloud.serving.running import MSGPACK, Answer, Live, started, until
from tests.cloud.small_published import SPLIT_VERSION

__all__ = [
    "JSON", "MSGPACK", "Answer", "Live", "command", "live", "piped", "request", "started", "until", "write_bundle",
]  # fmt: skip

_SCRIPT = """
import pickle, resource, sys
from pathlib import Path
from pocketrank.cloud.serving.process.serve import serve
from pocketrank.cloud.training.registry import FolderRegistry
from pocketrank.cloud.training.run import Run
if __name__ == "__main__":
    run, bundle, db, port, file_bytes_max, config = sys.argv[1:]
    if int(file_bytes_max):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_bytes_max),) * 2)
    config = pickle.loads(bytes.fromhex(config))
    run = Path(run)
    source = FolderRegistry(run) if (run / "active.json").exists() else Run.open(run)
    serve(source, Path(bundle) if bundle else None, port=int(port), feedback_db=Path(db), config=config)
"""

JSON = {"Content-Type": "application/json", "Accept": "application/json"}


def command(
    run: Path,
    db: Path,
    bundle: Path | None = None,
    port: int = 0,
    *,
    bytes_max: int | None = None,
    file_bytes_max: int = 0,
    config: ServingConfig | None = None,
) -> list[str]:
    """The command that serves as `config` says; the feedback log may take `bytes_max`, and any file `file_bytes_max`."""
    config = config or ServingConfig()
    if bytes_max is not None:
        config = replace(config, log=SqliteLogConfig(bytes_max=bytes_max))
    options = [str(run), str(bundle or ""), str(db), str(port), str(file_bytes_max), pickle.dumps(config).hex()]
    return [sys.executable, "-c", _SCRIPT, *options]


@contextmanager
def live(
    run: Path,
    db: Path,
    bundle: Path | None = None,
    *,
    stderr: Path | None = None,
    bytes_max: int | None = None,
    file_bytes_max: int = 0,
    config: ServingConfig | None = None,
) -> Iterator[Live]:
    """Start a server on a free port, wait until it says that it is ready, and kill it at the end.

    `run` is a run, or a folder of runs of which one is active.
    """
    args = command(run, db, bundle, bytes_max=bytes_max, file_bytes_max=file_bytes_max, config=config)
    with started(args, stderr) as running:
        yield running


def piped(folder: Path, toml: str, **more: Any) -> ServingConfig:
    """A server with this pipeline file in `folder`."""
    folder.mkdir(exist_ok=True)
    file = folder / "pipeline.toml"
    file.write_text(toml, "utf-8")
    return ServingConfig(pipeline=PipelineConfig.open(file), folder=folder, **more)


def request(user_id: int = 1, size: int = 10, **more: Any) -> PageRequest:
    """A page request with vectors by default."""
    fields: dict[str, Any] = {
        "request_id": "r",
        "user_id": user_id,
        "session_id": "s",
        "now_ms": 1_700_000_000_000,
        "size": size,
        "split_version": SPLIT_VERSION,
    }
    return PageRequest(**{**fields, **more})


def write_bundle(
    folder: Path, files: dict[str, bytes], split_version: str = SPLIT_VERSION, serial: int = 1, **wrong: Any
) -> Path:
    """A bundle of `files`; `wrong` replaces fields of the first file's entry."""
    entries = []
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        entries.append(FileEntry(path=path, bytes=len(data), sha256=sha256(data).hexdigest()))
    if wrong:
        entries[0] = msgspec.structs.replace(entries[0], **wrong)
    manifest = BundleManifest(
        name="small",
        serial=serial,
        created_ms=0,
        split_version=split_version,
        spec="spec.json",
        files=tuple(entries),
        models=(),
    )
    (folder / "manifest.json").write_bytes(to_json(manifest))
    return folder
