"""TLS by uvicorn: the certificate and its key, checked before the server starts.

Errors::

    TlsError                   a certificate or key that cannot be used, or one without the other; names the file
"""

from __future__ import annotations

import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

__all__ = ["TlsConfig", "TlsError", "UvicornTls"]


class TlsError(ValueError):
    """A certificate or key that cannot be used. The message names the file."""

    def __init__(self, where: Path, expected: str, got: str) -> None:
        super().__init__(f"Expected {expected}, got {got} - at {where}")
        self.where, self.expected, self.got = where, expected, got


class UvicornTls(TypedDict):
    """Arguments of `uvicorn.Config`."""

    ssl_certfile: str
    ssl_keyfile: str


@dataclass(frozen=True)
class TlsConfig:
    """What the server shows. TLS 1.2 is the least that Python's own defaults take."""

    certfile: Path
    """The certificate in PEM, the ones that vouch for it after it."""
    keyfile: Path
    """Its private key in PEM without a password, which others must not be able to read."""

    @classmethod
    def of(cls, certfile: Path | None, keyfile: Path | None) -> TlsConfig | None:
        """That of both files, None of neither. Raises `TlsError` when one is without the other."""
        if certfile is not None and keyfile is not None:
            return cls(certfile, keyfile)
        if certfile is not None:
            raise TlsError(certfile, "the certificate and its key", "a certificate alone")
        if keyfile is not None:
            raise TlsError(keyfile, "the certificate and its key", "a key alone")
        return None

    def check(self) -> None:
        """Raise `TlsError` when a file is not there, not readable, not what it should be, or the two do not match."""
        for path, what in ((self.certfile, "a certificate in PEM"), (self.keyfile, "a private key in PEM")):
            try:
                text = path.read_text("ascii")
            except OSError as error:
                raise TlsError(path, what, error.strerror or type(error).__name__) from error
            except ValueError as error:
                raise TlsError(path, what, "something else") from error
            if ("PRIVATE KEY-----" if path == self.keyfile else "-----BEGIN CERTIFICATE-----") not in text:
                raise TlsError(path, what, "something else")
        # A key that Kubernetes mounts is readable by the pod's group.
        if os.name == "posix" and self.keyfile.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise TlsError(self.keyfile, "a key that only its owner may read (chmod 600)", "one that others may")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password function OpenSSL would ask on the terminal, and the server would wait for ever.
            context.load_cert_chain(self.certfile, self.keyfile, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            got = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise TlsError(self.keyfile, f"the key, without a password, of {self.certfile}", got) from error

    def uvicorn(self) -> UvicornTls:
        """The arguments of `uvicorn.Config`, checked. Raises `TlsError`."""
        self.check()
        return {"ssl_certfile": str(self.certfile), "ssl_keyfile": str(self.keyfile)}


def _no_password() -> str:
    raise ValueError("a password")
