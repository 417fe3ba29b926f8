"""Bundles as they are published."""

from hashlib import sha256
from typing import Any

import msgspec

from pocketrank.cloud.serving.bundles.publish import BundlePublish
from pocketrank.cloud.serving.bundles.store import BundleRepository
from pocketrank.device.codec import to_json
from pocketrank.device.contract import BundleManifest, BundleRef, FileEntry, Release, Signed
from tests.cloud.small_published import SPLIT_VERSION

FILES = {"spec.json": b"{}", "models/split.fp32.onnx": b"model" * 1000}


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def manifest_of(files: dict[str, bytes], serial: int = 1, **wrong: Any) -> BundleManifest:
    """The manifest of `files`; `wrong` replaces fields of the first file's entry, or of the manifest."""
    entries = [FileEntry(path=path, bytes=len(data), sha256=digest(data)) for path, data in files.items()]
    of_entry = {name: value for name, value in wrong.items() if name in FileEntry.__struct_fields__}
    entries[0] = msgspec.structs.replace(entries[0], **of_entry)
    fields: dict[str, Any] = {
        "name": "small",
        "serial": serial,
        "created_ms": 0,
        "split_version": SPLIT_VERSION,
        "spec": "spec.json",
        "files": tuple(entries),
        "models": (),
    }
    return BundleManifest(**{**fields, **{name: value for name, value in wrong.items() if name not in of_entry}})


def publish_of(files: dict[str, bytes], serial: int = 1, release: int | None = None, **wrong: Any) -> BundlePublish:
    """The record of a bundle, with a release of that serial if there is one."""
    raw = to_json(manifest_of(files, serial, **wrong))
    return BundlePublish(manifest=raw, release=None if release is None else release_of(raw, release))


def release_of(manifest: bytes, serial: int = 1) -> bytes:
    """A release of a manifest, which nobody signed."""
    bundle = BundleRef(serial=1, manifest_bytes=len(manifest), manifest_sha256=digest(manifest))
    release = Release(serial=serial, created_ms=0, expires_ms=1, bundle=bundle)
    return to_json(Signed(signatures=(), payload=to_json(release)))


def fill(store: BundleRepository, files: dict[str, bytes]) -> None:
    """Upload the files."""
    for data in files.values():
        with store.incoming(digest(data), len(data)) as file:
            file.write(data)
