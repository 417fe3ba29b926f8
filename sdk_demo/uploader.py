"""Upload of a bundle to a server, and its rollback (`pocketrank.cloud.serving.routes.bundles`).

An upload asks which files are missing, sends those, and asks again.

Errors::

    UploadError                nothing has changed on the server; has the reason of the server, the network or the folder
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from pocketrank.cloud.serving.access.access import is_loopback
from pocketrank.cloud.serving.bundles.publish import BundlePublish, BundleReceipt
from pocketrank.device.bundle.files import MANIFEST, RELEASE, SIGNATURES
from pocketrank.device.codec import from_json, to_json
from pocketrank.device.contract import BundleManifest, ContractError

__all__ = ["UploadError", "Uploaded", "BundleUploader", "read_token"]

_JSON = "application/json"
_BYTES = "application/octet-stream"
_ROUNDS = 2  # the server may remove a file between the question and the end


class UploadError(ValueError):
    """Nothing has changed on the server. The message never contains the token."""


class Uploaded(NamedTuple):
    """The bundle that is served now."""

    serial: int
    files: int
    bytes: int
    sent: int
    """Number of files that the server did not have."""


def read_token(path: Path) -> str:
    """Return the token in a file that only its owner may read. Raises `UploadError`."""
    try:
        if path.stat().st_mode & stat.S_IRWXO:
            raise UploadError(f"Expected a token that only its owner may read (chmod 600), got one that others may - at {path}")
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeError) as error:
        raise UploadError(f"Expected a token, got: {getattr(error, 'strerror', None) or 'no text'} - at {path}") from error
    if not text.startswith("prk_") or not text.isprintable() or " " in text:
        raise UploadError(f"Expected a token `prk_<id>_<secret>`, got something else - at {path}")
    return text


class BundleUploader:
    """Client of one server's uploads. `timeout_s` bounds each wait. Raises `UploadError`."""

    def __init__(self, server: str, token: str, timeout_s: float = 60.0) -> None:
        try:
            url = urlsplit(server)
            host = url.hostname
        except ValueError:
            host = None
        if not host or url.scheme not in ("http", "https"):
            raise UploadError(f"Expected a URL like `https://host:port`, got `{server[:200]}`")
        self.is_private = url.scheme == "https" or is_loopback(host)
        """Whether the token is safe on the way: the connection is encrypted, or stays on this machine."""
        # No redirects and no proxies of the environment: the token goes to this server and nowhere else.
        headers = {"Authorization": f"Bearer {token}"}
        self._client = httpx.Client(
            base_url=server, headers=headers, timeout=timeout_s, follow_redirects=False, trust_env=False
        )

    def __enter__(self) -> BundleUploader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def __call__(self, folder: Path, sent: Callable[[str, int], object] = lambda path, size: None) -> Uploaded:
        """Upload the bundle in `folder` and have it served. `sent` is called with the path and size of each file.

        Raises `UploadError`.
        """
        publish, manifest = _read(folder)
        paths = {entry.sha256: entry.path for entry in manifest.files}
        count = 0
        for _ in range(_ROUNDS):
            answer = self._put("/v1/bundle", to_json(publish), _JSON)
            missing = self._missing(answer)
            if not missing:
                receipt = self._receipt(answer)
                return Uploaded(receipt.serial, receipt.files, receipt.bytes, count)
            for digest in missing:
                if digest not in paths:
                    raise UploadError(
                        f"Expected files of the manifest to be missing, got `{digest[:80]}` - at {self._client.base_url}"
                    )
                data = _file(folder / paths[digest], digest)
                self._expect(self._put(f"/v1/bundle/blobs/{digest}", data, _BYTES), 204)
                sent(paths[digest], len(data))
                count += 1
        self._expect(answer, 200)
        raise UploadError("Expected the server to keep what was uploaded, got the same files missing again")

    def roll_back(self) -> int | None:
        """Have the bundle served again that was served before the last upload.

        Return its serial, or None when no bundle is served now. Raises `UploadError`.
        """
        answer = self._send("POST", "/v1/bundle/rollback", b"", _BYTES)
        return None if answer.status_code == 204 else self._receipt(answer).serial

    def _put(self, path: str, data: bytes, kind: str) -> httpx.Response:
        return self._send("PUT", path, data, kind)

    def _send(self, method: str, path: str, data: bytes, kind: str) -> httpx.Response:
        try:
            return self._client.request(method, path, content=data, headers={"Content-Type": kind})
        except httpx.HTTPError as error:
            raise UploadError(f"Expected an answer of {self._client.base_url}, got {type(error).__name__}: {error}") from None

    def _missing(self, answer: httpx.Response) -> list[str]:
        if answer.status_code != 409:
            return []
        found = _json(answer).get("missing", [])
        return [digest for digest in found if isinstance(digest, str)] if isinstance(found, list) else []

    def _receipt(self, answer: httpx.Response) -> BundleReceipt:
        self._expect(answer, 200)
        try:
            return from_json(answer.content, BundleReceipt)
        except ContractError as error:
            raise UploadError(f"Expected a receipt for the bundle, got: {error}") from error

    def _expect(self, answer: httpx.Response, status: int) -> None:
        if answer.status_code != status:
            reason = _json(answer).get("error") or answer.reason_phrase
            raise UploadError(
                f"Expected the request to be accepted, got {answer.status_code}: {str(reason)[:500]} - at {answer.url}"
            )


def _read(folder: Path) -> tuple[BundlePublish, BundleManifest]:
    try:
        manifest = (folder / MANIFEST).read_bytes()
        signatures, release = (
            (folder / name).read_bytes() if (folder / name).is_file() else None for name in (SIGNATURES, RELEASE)
        )
        return BundlePublish(manifest=manifest, signatures=signatures, release=release), from_json(manifest, BundleManifest)
    except (OSError, ContractError) as error:
        raise UploadError(f"Expected a bundle with {MANIFEST}, got: {error} - at {folder}") from error


def _file(path: Path, digest: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UploadError(f"Expected a file of the bundle, got: {error.strerror} - at {path}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise UploadError(f"Expected the SHA-256 of the manifest, {digest}, got a file that changed - at {path}")
    return data


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
