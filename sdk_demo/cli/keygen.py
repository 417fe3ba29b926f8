"""`pocketrank keygen`: a key that signs bundles and releases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["keygen"]


def keygen(
    out: Annotated[Path, typer.Argument(help="File of the private key; the public one goes beside it as `.pub`.")],
) -> None:
    """Make an Ed25519 key that signs bundles and releases.

    Devices install nothing that is not signed by a key that the app was built with. One key will do for both; better are two:
    one for bundles, kept offline, and one for releases, which is used every few days and cannot make a bundle.

    \b
    pocketrank keygen keys/bundle
    pocketrank keygen keys/release
    pocketrank export runs/world --out runs/bundle --key keys/bundle
    pocketrank release runs/bundle --key keys/release

    Writes the private key, which only you may read, and the public one. Who has the private key decides what runs on all
    devices: keep it out of repositories, bundles and images. The public one goes into the app:

    \b
    TrustedKeys(manifest=(BUNDLE_PUB,), release=(RELEASE_PUB,))
    """
    from pocketrank.export.signing import generate_key

    public = generate_key(out)
    typer.echo(f"private key: {out}")
    typer.echo(f"public key:  {public} (in {out}.pub)")
