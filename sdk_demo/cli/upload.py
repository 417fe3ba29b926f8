"""`pocketrank upload` and `pocketrank rollback`: change which bundle a running server serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pocketrank.sdk_demo.uploader import BundleUploader

__all__ = ["rollback", "upload"]

Server = Annotated[str, typer.Option(metavar="URL", help="Address of the server, such as https://host:port.")]
AllowHttp = Annotated[
    bool, typer.Option("--allow-http", help="Send the token unencrypted to another machine; for private networks.")
]
TimeoutS = Annotated[float, typer.Option(min=0.1, max=3600, help="Timeout of each request.")]


def upload(
    bundle: Annotated[Path, typer.Argument(help="Folder that `pocketrank export` wrote.")],
    server: Server,
    token_file: Annotated[
        Path, typer.Option(help="File with a token of scope `publish`, as `pocketrank token create --out` writes it.")
    ],
    allow_http: AllowHttp = False,
    timeout_s: TimeoutS = 60.0,
) -> None:
    """Upload a bundle to a running server, which then serves it.

    Files that the server already has are not sent again: an interrupted upload resumes, and a new release of the same bundle is
    one small request. Devices see the old bundle or the new one, never a mix.

    \b
    pocketrank upload runs/bundle --server https://pages.example --token-file publish.token

    Writes no local files. The server must run with `--tokens`.
    """
    with _connected(server, token_file, allow_http, timeout_s) as uploader:
        done = uploader(bundle, lambda path, size: typer.echo(f"uploaded {path}, {size} bytes", err=True))
    typer.echo(f"bundle {done.serial} is served: {done.files} files, {done.bytes} bytes in total, {done.sent} files uploaded")


def rollback(
    server: Server,
    token_file: Annotated[
        Path, typer.Option(help="File with a token of scope `admin`, as `pocketrank token create --out` writes it.")
    ],
    allow_http: AllowHttp = False,
    timeout_s: TimeoutS = 60.0,
) -> None:
    """Let a running server serve the bundle again that it served before the last upload.

    It works once after each upload. Devices that installed the later bundle keep it, because they accept no lower serial:
    export the good model again, with a higher serial and a new release. `pocketrank release --kill` stops all models until
    then.

    \b
    pocketrank rollback --server https://pages.example --token-file admin.token

    Writes no local files.
    """
    with _connected(server, token_file, allow_http, timeout_s) as uploader:
        serial = uploader.roll_back()
    typer.echo("no bundle is served: there was none before the upload" if serial is None else f"bundle {serial} is served")


@contextmanager
def _connected(server: str, token_file: Path, allow_http: bool, timeout_s: float) -> Iterator[BundleUploader]:
    from pocketrank.sdk_demo.cli.errors import OptionError
    from pocketrank.sdk_demo.uploader import BundleUploader, read_token

    with BundleUploader(server, read_token(token_file), timeout_s) as uploader:
        if not (allow_http or uploader.is_private):
            raise OptionError("--server", "an https:// URL, or `--allow-http`", server)
        yield uploader
