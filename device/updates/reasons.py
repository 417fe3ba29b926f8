"""Sentences that say why a device runs the bundle it runs, or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pocketrank.device.bundle.files import (
    RELEASE,
    BundleError,
    BundleLockedError,
    BundleStorageError,
    BundleVersionError,
    ExpiredBundleError,
    ExpiredReleaseError,
    FutureReleaseError,
    OtherFeedError,
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

_NO_RELEASE = "the server has no release: make one with `pocketrank release`"
_CLAUSES: dict[type[Exception], str] = {  # the first that an error is
    UnreachableError: "the server is unreachable",
    BadStatusError: "the server answered with status {}",
    ClientError: "the server gave an answer that cannot be used",
    UnsignedError: "the server's bundle is unsigned: export it with `--key` and sign a release",
    SignatureError: "the server's {} is not signed by the trusted keys",
    ExpiredReleaseError: "the server's release is expired",
    FutureReleaseError: "the server's release is dated ahead of this device's clock",
    ReleaseError: "the server's release is older than the last one, or inconsistent with it",
    ExpiredBundleError: "the released bundle is expired",
    ProbeError: "the released bundle failed on this device",
    OtherFeedError: "the server's {} is for another app or channel",
    BundleVersionError: "the server's release or bundle needs another version of this SDK",
    BundleLockedError: "the bundles are in use by another `Updates`",
    BundleStorageError: "the device's disk cannot be written",
    BundleError: "the server's release or bundle is malformed",
}


def failure(err: ClientError | BundleError) -> Reason:
    """Return the reason why a check failed."""
    clause = next(clause for kind, clause in _CLAUSES.items() if isinstance(err, kind))
    if isinstance(err, BadStatusError):
        clause = _NO_RELEASE if err.status == 404 and err.where.endswith(RELEASE) else clause.format(err.status)
    return Reason(clause.format("release" if err.where == RELEASE else "bundle"), str(err))


def sentence(reasons: Sequence[Reason]) -> str:
    """Return one sentence of all `reasons`."""
    *first, last = (f"{clause} ({detail})" if detail else clause for clause, detail in reasons)
    return f"{', '.join(first)} and {last}." if first else f"{last}."
