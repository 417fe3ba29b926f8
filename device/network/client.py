"""Calls to the cloud: pages, feedback and bundles, over one kept-alive connection and by the standard library alone.

Errors are in `pocketrank.device.network.errors`; calls that write files also raise those of `pocketrank.device.bundle.files`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import (
    MANIFEST,
    SIGNATURES,
    TEXT_MAX,
    BundleError,
    CorruptBundleError,
    UnsignedError,
    check_path,
    check_paths,
    on_disk,
)
from pocketrank.device.bundle.signing import TrustedKeys
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
from pocketrank.device.network.errors import BadAnswerError, BadStatusError
from pocketrank.device.network.transport import Transport

__all__ = ["CloudClient", "fetch_signatures"]

_ANSWER_MAX = 16 << 20  # bytes; a page of 60 candidates has ten thousand
_BUNDLE_MAX = 256 << 20  # bytes of all files of a bundle
_SIGNATURES_MAX = 1 << 16  # bytes; real ones have hundreds
_RATE_MIN = 8 << 10  # bytes per second below which a download is interrupted: a tenth of what 3G is good for
_CHUNK = 1 << 16

S = TypeVar("S", bound=msgspec.Struct)


class _BadRangeError(BadAnswerError):
    """A part of a file (206) that cannot be used."""


class CloudClient:
    """One device's connection to the cloud. Calls from several threads take turns."""

    def __init__(self, base_url: str, token: str | Callable[[], str] | None = None, timeout_s: float = 5.0) -> None:
        """`base_url` like `https://host:port/prefix`; `token` is sent as bearer; `timeout_s` bounds each call as a whole.

        A token that expires is given as a function that returns a fresh one, which the app gets from its own backend. It is
        called before the first call, and when the server refuses the last token (401); the call is then made once again. Its
        time is a part of the call's, but only the function itself can end it.

        Raises `BadUrlError`. The first call connects.
        """
        self._transport = Transport(base_url, token, timeout_s)

    def __enter__(self) -> CloudClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._transport.close()

    def page(self, request: PageRequest) -> Page:
        """Request a page. Its blocks are not checked here: a session falls back by itself where one is malformed.

        Raises `ClientError`; the request's feedback then remains to be sent.
        """
        return self._post("/v1/page", request, Page)

    def send_feedback(self, events: Sequence[FeedbackEvent], telemetry: TelemetryReport | None = None) -> FeedbackReceipt:
        """Upload events and a report of the device's own health; once this returns the events are durable.

        Sending an event or a report twice is harmless. Raises `ClientError`.
        """
        return self._post("/v1/feedback", FeedbackBatch(events=tuple(events), telemetry=telemetry), FeedbackReceipt)

    def health(self) -> dict[str, Any]:
        """Return the server's report of its own health. Raises `ClientError`."""
        body = self.fetch("/healthz")
        try:
            return msgspec.json.decode(body, type=dict[str, Any])
        except (ValueError, RecursionError) as err:
            raise BadAnswerError(self._transport.name("GET", "/healthz"), "a JSON object", str(err)) from err

    def download_bundle(self, folder: Path, keys: TrustedKeys | None = None) -> Bundle:
        """Install the server's bundle as `folder`. When anything fails, the earlier content of `folder` stays.

        For a first start and for development; an app in use updates through `pocketrank.device.updates`. Without `keys` the
        server is trusted. Only the manifest is fetched when `folder` already holds the same bundle. Raises `ClientError`,
        `BundleError`.
        """
        text = self.fetch(f"/v1/bundle/{MANIFEST}", TEXT_MAX)
        with contextlib.suppress(OSError, BundleError):
            if (folder / MANIFEST).read_bytes() == text:
                return Bundle.open(folder, keys=keys)
        with on_disk(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            # In the same parent, so that the last step is a rename within one file system.
            new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                (new / MANIFEST).write_bytes(text)
                if keys is not None:
                    (new / SIGNATURES).write_bytes(fetch_signatures(self))
                    keys.verify_beside("manifest", text, new / SIGNATURES)
                try:
                    manifest = from_json(text, BundleManifest)
                except ContractError as err:
                    name = self._transport.name("GET", f"/v1/bundle/{MANIFEST}")
                    raise BadAnswerError(name, f"{err.expected} at `{err.path}`", err.got) from err
                self.fetch_files(manifest, new)
                bundle = Bundle.open(new, keys=keys)
                _install(new, folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
        return Bundle(folder, bundle.manifest, bundle.spec)

    def fetch_files(self, manifest: BundleManifest, folder: Path, bytes_max: int = _BUNDLE_MAX) -> None:
        """Fetch every file of `manifest` into `folder`, each as `fetch_file` does.

        Raises before the first call when all files together have more than `bytes_max` bytes.
        """
        check_paths((entry.path for entry in manifest.files), MANIFEST)
        total = sum(max(0, entry.bytes) for entry in manifest.files)
        if total > bytes_max or any(entry.bytes < 0 for entry in manifest.files):
            raise CorruptBundleError(MANIFEST, f"files of at most {bytes_max} bytes", str(total))
        for entry in manifest.files:
            self.fetch_file(entry, folder)

    def fetch_file(self, entry: FileEntry, folder: Path) -> None:
        """Fetch the entry's file into `folder`, resuming where an earlier call was interrupted.

        The file has the size and digest of its entry when this returns. Bytes that arrived before an error stay for the next
        call, unless they cannot be the beginning of the file. Raises `ClientError`, `BundleError`.
        """
        target = folder / check_path(entry.path)
        with on_disk(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("a+b") as file:
                try:
                    is_whole = self._resume(entry, file)
                except _BadRangeError:  # of a cache on the way, say; the whole file needs no range
                    is_whole = self._resume(entry, file, ranges=False)
                if not is_whole:
                    # The bytes at hand were not the beginning of this file. Only a fresh start can help, once.
                    file.truncate(0)
                    if not self._resume(entry, file):
                        file.truncate(0)
                        raise CorruptBundleError(str(target), f"SHA-256 {entry.sha256[:64]}", "another")
                os.fsync(file.fileno())

    def fetch(self, path: str, bytes_max: int = _ANSWER_MAX) -> bytes:
        """Return the body of a GET, of at most `bytes_max` bytes. Raises `ClientError`."""
        return self._transport.call("GET", path, bytes_max)

    def _resume(self, entry: FileEntry, file: io.BufferedRandom, *, ranges: bool = True) -> bool:
        """Append the missing bytes. False when the file then has another size or digest than its entry.

        Without `ranges` the whole file is asked for. The bytes at hand stay until it arrives.
        """
        # Digest the bytes at hand.
        file.seek(0)
        digest = hashlib.sha256()
        while part := file.read(_CHUNK):
            digest.update(part)
        have = file.tell()
        ends = time.monotonic() + (entry.bytes - have) / _RATE_MIN
        # A server may send a shorter range than the rest. Each adds a byte at least, and all share the time of the whole.
        while have < entry.bytes:
            path = f"/v1/bundle/files/{quote(entry.path)}"
            name = self._transport.name("GET", path)
            # The tag keeps a server whose file has changed since from sending the rest of the new one.
            headers = {"Range": f"bytes={have}-", "If-Range": f'"{entry.sha256}"'} if have and ranges else {}
            with self._transport.exchange("GET", path, headers, more_s=ends - time.monotonic()) as response:
                # Check what the server offers: the rest or some of it (206), or the whole file again (200).
                if response.status == 416 and headers:
                    response.abandon()
                    return False
                if response.status not in (200, 206):
                    raise self._transport.bad_status("GET", path, response, response.body(_CHUNK))
                start, end = 0, entry.bytes
                wrong: type[BadAnswerError] = BadAnswerError
                if response.status == 206:
                    start, wrong = have if headers else 0, _BadRangeError
                    end = _range_end(name, response.getheader("Content-Range"), start, entry.bytes)
                if response.length is not None and response.length > end - start:
                    raise wrong(name, f"at most {end - start} bytes", "more")
                if start < have:
                    file.truncate(0)
                    have, digest = 0, hashlib.sha256()
                # Append it, and never more than was offered.
                for part in response.parts(end - have):
                    have += len(part)
                    if have > end:
                        raise wrong(name, f"at most {end - start} bytes", "more")
                    with on_disk(Path(file.name)):
                        file.write(part)
                        file.flush()  # what arrived must stay, whatever happens next
                    digest.update(part)
            if have < end:  # a connection that broke, unless nothing came at all
                raise (wrong if have == start else BadAnswerError)(name, f"{end} bytes", f"{have}")
        return have == entry.bytes and digest.hexdigest() == entry.sha256.lower()

    def _post(self, path: str, body: msgspec.Struct, answer: type[S]) -> S:
        data = self._transport.call("POST", path, _ANSWER_MAX, to_msgpack(body))
        try:
            return from_msgpack(data, answer)
        except ContractError as err:
            name = self._transport.name("POST", path)
            raise BadAnswerError(name, f"{err.expected} at `{err.path}`", err.got) from err


def fetch_signatures(client: CloudClient) -> bytes:
    """Return the signatures of the server's bundle. Raises `UnsignedError` when it has none, and `ClientError`."""
    try:
        return client.fetch(f"/v1/bundle/{SIGNATURES}", _SIGNATURES_MAX)
    except BadStatusError as err:
        if err.status != 404:
            raise
        raise UnsignedError(err.where, "a signed bundle", "an unsigned one") from err


def _range_end(name: str, header: str | None, have: int, size: int) -> int:
    """Return where the bytes end that follow the first `have` of `size`, by the header `Content-Range` (RFC 9110, 14.4).

    A cache that does not know the size sends `*` in its place. Raises `_BadRangeError` for another range.
    """
    found = re.fullmatch(r"bytes +(\d{1,18})-(\d{1,18})/(\*|\d{1,18})", (header or "").strip(), re.ASCII | re.IGNORECASE)
    if found is None or int(found[1]) != have or not have <= int(found[2]) < size or found[3] not in ("*", str(size)):
        raise _BadRangeError(name, f"a range of bytes {have}-{size - 1}/{size} that begins it", f"{header!r:.100}")
    return int(found[2]) + 1


def _install(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`. When that fails, the old folder is restored."""
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
