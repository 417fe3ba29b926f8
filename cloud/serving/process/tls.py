"""The certificate and the key of https, checked before the server starts.

Errors::

    TlsError                   a certificate or key that cannot be used, or is missing; names the file
"""

from __future__ import annotations

import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from pocketrank.device.contract import MismatchError

__all__ = ["TlsConfig", "TlsError"]


class TlsError(MismatchError, ValueError):
    """A certificate or key that cannot be used. The message names the file."""


@dataclass(frozen=True)
class TlsConfig:
    """The files that a server proves its name with. TLS 1.2 is the lowest version that Python's defaults accept."""

    certfile: Path
    """The certificate in PEM, followed by those of the authorities that signed it."""
    keyfile: Path
    """Its private key in PEM, without a password. Only its owner may read it."""

    @classmethod
    def of(cls, certfile: Path | None, keyfile: Path | None) -> TlsConfig | None:
        """Return the configuration of two files, or None when neither is given. Raises `TlsError` when one is missing."""
        if certfile is not None and keyfile is not None:
            return cls(certfile, keyfile)
        if (alone := certfile or keyfile) is not None:
            raise TlsError(alone, "the certificate and its key", "a certificate alone" if certfile else "a key alone")
        return None

    def check(self) -> None:
        """Raise `TlsError` when a file is missing, unreadable or not PEM, or when the two do not match."""
        for path, what in ((self.certfile, "a certificate in PEM"), (self.keyfile, "a private key in PEM")):
            try:
                text = path.read_text("ascii", "replace")
            except OSError as error:
                raise TlsError(path, what, error.strerror or type(error).__name__) from error
            if ("PRIVATE KEY-----" if path == self.keyfile else "-----BEGIN CERTIFICATE-----") not in text:
                raise TlsError(path, what, "something else")
        # The group may read: Kubernetes mounts secrets for the pod's group.
        if os.name == "posix" and self.keyfile.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise TlsError(self.keyfile, "a key that only its owner may read (chmod 600)", "one that others may")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password function OpenSSL would prompt on the terminal, and the server would wait for ever.
            context.load_cert_chain(self.certfile, self.keyfile, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            got = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise TlsError(self.keyfile, f"the key, without a password, of {self.certfile}", got) from error


def _no_password() -> str:
    raise ValueError("a password")
