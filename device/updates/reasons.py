"""Sentences that say why a device runs the bundle it runs, or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pocketrank.device.bundle.files import (
    RELEASE,
    BundleError,
    BundleStorageError,
    BundleVersionError,
    ExpiredBundleError,
    ExpiredReleaseError,
    ProbeError,
    ReleaseError,
    SignatureError,
    UnsignedError,
)
from pocketrank.device.network.errors import BadStatusError, ClientError, UnreachableError

__all__ = ["NOT_CHECKED", "Reason", "failure", "sentence"]


class Reason(NamedTuple):
    """A clause of a sentence, such as `the server is unreachable`."""

    clause: str
    detail: str = ""
    """The text of an error. It may differ from check to check while the reason stays the same."""


NOT_CHECKED = Reason("no check was made: call `start` or `check`")
"""The reason before the first check."""


def failure(err: ClientError | BundleError) -> Reason:
    """Return the reason why a check failed."""
    match err:
        case UnreachableError():
            clause = "the server is unreachable"
        case BadStatusError(status=404) if err.where.endswith(RELEASE):
            clause = "the server has no release: make one with `pocketrank release`"
        case BadStatusError():
            clause = f"the server answered with status {err.status}"
        case ClientError():
            clause = "the server gave an answer that cannot be used"
        case UnsignedError():
            clause = "the server's bundle is unsigned: export it with `--key` and sign a release"
        case SignatureError():
            signed = "release" if err.where == RELEASE else "bundle"
            clause = f"the server's {signed} is not signed by the trusted keys"
        case ExpiredReleaseError():
            clause = "the server's release is expired"
        case ReleaseError():
            clause = "the server's release is older than the last one, or inconsistent with it"
        case ExpiredBundleError():
            clause = "the released bundle is expired"
        case ProbeError():
            clause = "the released bundle failed on this device"
        case BundleVersionError():
            clause = "the server's release or bundle needs another version of this SDK"
        case BundleStorageError():
            clause = "the device's disk cannot be written"
        case _:
            clause = "the server's release or bundle is malformed"
    return Reason(clause, str(err))


def sentence(reasons: Sequence[Reason]) -> str:
    """Return one sentence of all `reasons`."""
    *first, last = (f"{clause} ({detail})" if detail else clause for clause, detail in reasons)
    return f"{', '.join(first)} and {last}." if first else f"{last}."
