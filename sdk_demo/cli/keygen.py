"""`pocketrank keygen`: a key pair that signs bundles and releases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["keygen"]


def keygen(
    out: Annotated[Path, typer.Argument(help="New file for the private key; the public key is written to OUT.pub.")],
) -> None:
    """Generate an Ed25519 key pair that signs bundles and releases.

    Devices only install what is signed by a key that the app was built with. One key can sign both; two are safer: one for
    bundles, kept offline, and one for releases, which is used every few days and cannot sign a bundle.

    \b
    pocketrank keygen keys/bundle
    pocketrank keygen keys/release
    pocketrank export runs/world --out runs/bundle --key keys/bundle
    pocketrank release runs/bundle --key keys/release

    Writes the private key, readable by you only, and the public key. Whoever has the private key decides what all devices run:
    keep it out of repositories, bundles and images. Build the app with the public key, or with both:

    \b
    TrustedKeys.one(PUB)
    TrustedKeys(manifest=(BUNDLE_PUB,), release=(RELEASE_PUB,))
    """
    from pocketrank.export.signing import generate_key

    public = generate_key(out)
    typer.echo(f"private key: {out}")
    typer.echo(f"public key:  {public} (in {out}.pub)")
