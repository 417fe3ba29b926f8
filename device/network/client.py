"""Talks to the cloud: pages, feedback, bundles. Standard library only, one kept-alive connection.

Errors are in `transport`; `fetch_file` and `download_bundle` also raise `bundle_files.BundleError`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import msgspec

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import (
    MANIFEST,
    SIGNATURES,
    TEXT_MAX,
    BundleError,
    CorruptBundleError,
    check_path,
    check_paths,
    on_disk,
)
from pocketrank.device.codec import from_json, from_msgpack, to_msgpack
from pocketrank.device.contract import (
    BundleManifest,
    ContractError,
    FeedbackBatch,
    FeedbackEvent,
    FeedbackReceipt,
    FileEntry,
    Page,
    PageRequest,
    TelemetryReport,
)
from pocketrank.device.network.errors import BadAnswerError, BadStatusError, BadUrlError, ClientError, UnreachableError
from pocketrank.device.network.transport import Transport, beginning

if TYPE_CHECKING:
    from pocketrank.device.bundle.signing import TrustedKeys

__all__ = ["BadAnswerError", "BadStatusError", "BadUrlError", "ClientError", "CloudClient", "UnreachableError"]

MSGPACK = "application/msgpack"
_ANSWER_MAX = 16 << 20  # bytes; a page of 60 candidates has ten thousand
_BUNDLE_MAX = 256 << 20  # bytes of all files of a bundle
_RATE_MIN = 8 << 10  # bytes per second below which a file is given up for now: a tenth of what 3G is good for
_CHUNK = 1 << 16

S = TypeVar("S", bound=msgspec.Struct)


class CloudClient:
    """One device's line to the cloud. Calls from several threads take turns."""

    def __init__(self, base_url: str, token: str | None = None, timeout_s: float = 5.0) -> None:
        """`base_url` like `https://host:port/prefix`; `token` is sent as bearer; `timeout_s` bounds each call as a whole.

        Raises `BadUrlError`; nothing is connected yet.
        """
        self._line = Transport(base_url, token, timeout_s, MSGPACK)

    def __enter__(self) -> CloudClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._line.close()

    def page(self, request: PageRequest) -> Page:
        """A page. Its blocks are not looked into: a session falls back by itself where one is bad.

        Raises `ClientError`; the request's feedback is then still yours.
        """
        return self._post("/v1/page", request, Page)

    def send_feedback(self, events: Sequence[FeedbackEvent], telemetry: TelemetryReport | None = None) -> FeedbackReceipt:
        """Upload events, and what the device tells of itself; once this returns the events are durable. Sending an event or a
        report twice is harmless. Raises `ClientError`.
        """
        return self._post("/v1/feedback", FeedbackBatch(events=tuple(events), telemetry=telemetry), FeedbackReceipt)

    def health(self) -> dict[str, Any]:
        """What the server says of itself. Raises `ClientError`."""
        body = self.fetch("/healthz")
        try:
            return msgspec.json.decode(body, type=dict[str, Any])
        except (ValueError, RecursionError) as err:
            raise BadAnswerError(self._line.name("GET", "/healthz"), str(err)) from err

    def download_bundle(self, folder: Path, keys: TrustedKeys | None = None) -> Bundle:
        """The server's bundle, installed as `folder`: all of it, checked, or what was there before.

        For a first start and for development; an app that is in use goes through `pocketrank.device.updates`. Without `keys`
        the server is trusted. Nothing but the manifest is fetched when `folder` already holds the same bundle. Raises
        `ClientError`, `BundleError`.
        """
        text = self.fetch(f"/v1/bundle/{MANIFEST}", TEXT_MAX)
        with contextlib.suppress(OSError, BundleError):
            if (folder / MANIFEST).read_bytes() == text:
                return Bundle.open(folder, keys=keys)
        with on_disk(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Beside the goal, so that the last step is a rename within one file system.
            new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                (new / MANIFEST).write_bytes(text)
                if keys is not None:
                    (new / SIGNATURES).write_bytes(self.fetch(f"/v1/bundle/{SIGNATURES}", TEXT_MAX))
                    keys.verify_beside("manifest", text, new / SIGNATURES)
                try:
                    manifest = from_json(text, BundleManifest)
                except ContractError as err:
                    raise BadAnswerError(self._line.name("GET", f"/v1/bundle/{MANIFEST}"), str(err)) from err
                self.fetch_files(manifest, new)
                bundle = Bundle.open(new, keys=keys)
                _install(new, folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
        return Bundle(folder, bundle.manifest, bundle.spec)

    def fetch_files(self, manifest: BundleManifest, folder: Path, bytes_max: int = _BUNDLE_MAX) -> None:
        """Every file of `manifest` into `folder`, on from where an earlier call was cut off; see `fetch_file`.

        Raises before anything is fetched when together they are more than `bytes_max`.
        """
        check_paths((entry.path for entry in manifest.files), MANIFEST)
        total = sum(max(0, entry.bytes) for entry in manifest.files)
        if total > bytes_max or any(entry.bytes < 0 for entry in manifest.files):
            raise CorruptBundleError(MANIFEST, f"files of at most {bytes_max} bytes", str(total))
        for entry in manifest.files:
            self.fetch_file(entry, folder)

    def fetch_file(self, entry: FileEntry, folder: Path) -> None:
        """The file of that entry into `folder`, on from where an earlier call was cut off.

        It is there when this returns, with the size and digest of its entry. What came before an error stays for the next
        call, unless it cannot be the beginning of the file. Raises `ClientError`, `BundleError`.
        """
        target = folder / check_path(entry.path)
        with on_disk(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("a+b") as file:
                if not self._continue(entry, file):
                    file.truncate(0)  # not what the manifest says; a fresh start is the only cure
                    if not self._continue(entry, file):
                        file.truncate(0)
                        raise CorruptBundleError(str(target), f"SHA-256 {entry.sha256[:64]}", "another")
                os.fsync(file.fileno())

    def fetch(self, path: str, bytes_max: int = _ANSWER_MAX) -> bytes:
        """The body of a GET, of at most `bytes_max` bytes. Raises `ClientError`."""
        return self._line.call("GET", path, bytes_max)

    def _continue(self, entry: FileEntry, file: io.BufferedRandom) -> bool:
        """Append what is missing. False when the file then has another digest."""
        line = self._line
        file.seek(0)
        digest = hashlib.sha256()
        while part := file.read(_CHUNK):
            digest.update(part)
        have = file.tell()
        if have < entry.bytes:
            path = f"/v1/bundle/files/{quote(entry.path)}"
            name = line.name("GET", path)
            # The tag keeps a server that has another file by now from sending the rest of that one.
            headers = {"Range": f"bytes={have}-", "If-Range": f'"{entry.sha256}"'} if have else {}
            with line.exchange("GET", path, headers, more_s=(entry.bytes - have) / _RATE_MIN) as response:
                if response.status == 416 and have:
                    line.hang_up()
                    return False
                if response.status != 200 and not (response.status == 206 and have):
                    raise BadStatusError(name, response.status, beginning(line.read(response, _CHUNK)))
                if response.status == 206:
                    expected, got = f"bytes {have}-{entry.bytes - 1}/{entry.bytes}", response.getheader("Content-Range")
                    if got != expected:
                        raise BadAnswerError(name, f"expected the range {expected}, got {got!r:.100}")
                start = have if response.status == 206 else 0
                if response.length is not None and response.length > entry.bytes - start:
                    raise BadAnswerError(name, f"expected at most {entry.bytes} bytes, got more")
                if start < have:
                    file.truncate(0)
                    have, digest = 0, hashlib.sha256()
                for part in line.parts(response, entry.bytes - have):
                    have += len(part)
                    if have > entry.bytes:
                        raise BadAnswerError(name, f"expected at most {entry.bytes} bytes, got more")
                    with on_disk(Path(file.name)):
                        file.write(part)
                        file.flush()  # what came stays, whatever happens next
                    digest.update(part)
            if have < entry.bytes:
                raise BadAnswerError(name, f"expected {entry.bytes} bytes, got {have}")
        return have == entry.bytes and digest.hexdigest() == entry.sha256.lower()

    def _post(self, path: str, body: msgspec.Struct, answer: type[S]) -> S:
        data = self._line.call("POST", path, _ANSWER_MAX, to_msgpack(body), MSGPACK)
        try:
            return from_msgpack(data, answer)
        except ContractError as err:
            raise BadAnswerError(self._line.name("POST", path), str(err)) from err


def _install(new: Path, folder: Path) -> None:
    """Put `new` in `folder`'s place. What was there comes back when that fails."""
    if not folder.exists():
        os.rename(new, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.rename(folder, old / "bundle")
    try:
        os.rename(new, folder)
    except OSError:
        os.rename(old / "bundle", folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
