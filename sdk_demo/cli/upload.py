"""`pocketrank upload`: sends a bundle to a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["upload"]


def upload(
    bundle: Annotated[Path, typer.Argument(help="Folder that `pocketrank export` wrote.")],
    server: Annotated[str, typer.Option(metavar="URL", help="Address of the server, such as https://host:port.")],
    token_file: Annotated[
        Path, typer.Option(help="File with a token of scope `publish`, as `pocketrank token create --out` writes it.")
    ],
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Send the token unencrypted to another machine; for private networks.")
    ] = False,
    timeout_s: Annotated[float, typer.Option(min=0.1, max=3600, help="Timeout of each request.")] = 60.0,
) -> None:
    """Upload a bundle to a running server, which then serves it.

    Files that the server already has are not sent again: an interrupted upload resumes, and a new release of the same bundle is
    one small request. Devices see the old bundle or the new one, never a mix.

    \b
    pocketrank upload runs/bundle --server https://pages.example --token-file publish.token

    Writes no local files. The server must run with `--tokens`.
    """
    from pocketrank.sdk_demo.cli.errors import OptionError
    from pocketrank.sdk_demo.uploader import BundleUploader, read_token

    with BundleUploader(server, read_token(token_file), timeout_s) as uploader:
        if not (allow_http or uploader.is_private):
            raise OptionError("--server", "an https:// URL, or `--allow-http`", server)
        done = uploader(bundle, lambda path, size: typer.echo(f"uploaded {path}, {size} bytes", err=True))
    typer.echo(f"bundle {done.serial} is served: {done.files} files, {done.bytes} bytes in total, {done.sent} files uploaded")
