"""`pocketrank token`: who may ask a server for pages, upload bundles and look after it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketrank.sdk_demo.cli.errors import OptionError

if TYPE_CHECKING:
    from pocketrank.cloud.serving.access.token_file import TokenRecord

__all__ = ["Scope", "create", "list_all", "revoke", "token"]

_DAY_MS = 86_400_000

TokensFile = Annotated[Path, typer.Argument(metavar="TOKENS", help="File that `pocketrank serve --tokens` reads.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Report as JSON; `-` is stdout. [default: none]")]


class Scope(StrEnum):
    """What a token may do."""

    device = "device"
    publish = "publish"
    admin = "admin"


token = typer.Typer(name="token", no_args_is_help=True, rich_markup_mode=None)
"""The commands over a file of tokens."""


@token.callback()
def _token() -> None:
    """Make, list and revoke the tokens that a server lets in.

    A token has scopes, and no scope implies another: `device` asks for pages, sends feedback and downloads the bundle;
    `publish` uploads one; `admin` reads metrics. A running `pocketrank serve --tokens` follows the file within a second.

    \b
    pocketrank token create tokens.json --scope device --note "the app's gateway" --rate 500
    pocketrank token create tokens.json --scope publish --out publish.token
    pocketrank token list tokens.json
    pocketrank token revoke tokens.json 9f2c41d07ab3

    Writes the file, which only you may read; it has the digests of the tokens and none of them.
    """


@token.command()
def create(
    tokens: TokensFile,
    scope: Annotated[list[Scope], typer.Option(help="What it may do; repeat it for several.")],
    expires_days: Annotated[float, typer.Option(min=0.0001, max=3650, help="Days after which it is no longer let in.")] = 90.0,
    note: Annotated[str, typer.Option(help="Whose it is.")] = "",
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e6, help="Requests a second that it may make. [default: the server's for the scope]"),
    ] = None,
    burst: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Requests at once. [default: ten seconds of the rate]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New file for the token. [default: it is printed]")] = None,
    json: Json = None,
) -> None:
    """Make a token and show it this once.

    \b
    pocketrank token create tokens.json --scope device --expires-days 365
    pocketrank token create tokens.json --scope publish --out publish.token

    Writes the file of tokens, and makes it when there is none.
    """
    from pocketrank.cloud.serving.access.limits import RateLimit
    from pocketrank.cloud.serving.access.token_file import issue_token
    from pocketrank.sdk_demo.cli.output import JsonTarget

    if burst is not None and rate is None:
        raise OptionError("--burst", "`--rate` beside it", str(burst))
    if len(note) > 200:
        raise OptionError("--note", "at most 200 characters", note[:20] + "…")
    if json not in (None, "-") and out is None:
        raise OptionError(
            "--json", "`-`, or `--out` beside it: others may read a report, and it would have the token", str(json)
        )
    target = JsonTarget(json)
    limit = None if rate is None else RateLimit(rate, burst or max(1, round(10 * rate)))
    with _secret_file(out) as keep:
        made = issue_token(
            tokens,
            [item.value for item in scope],
            now_ms=_now_ms(),
            lasts_ms=round(expires_days * _DAY_MS),
            note=note,
            rate=limit,
        )
        keep(made.token)
    report = _report(made.record, made.record.created_ms)
    target.write(report if out else {"token": made.token, **report})
    if json != "-":
        typer.echo(f"token: {made.token}" if out is None else f"token {made.record.id}: in {out}")
        typer.echo(f"{' and '.join(made.record.scopes)}, expires {_date(made.record.expires_ms)}; not shown again", err=True)


@token.command("list")
def list_all(tokens: TokensFile, json: Json = None) -> None:
    """List the tokens of a file, in the order they were made.

    \b
    pocketrank token list tokens.json
    pocketrank token list tokens.json --json -

    Writes nothing but the report.
    """
    from rich.table import Table

    from pocketrank.cloud.serving.access.token_file import list_tokens
    from pocketrank.sdk_demo.cli.output import JsonTarget

    target, now_ms = JsonTarget(json), _now_ms()
    reports = [_report(record, now_ms) for record in list_tokens(tokens)]
    target.write({"tokens": reports})
    table = Table("id", "scopes", "state", "expires", "note")
    for report in reports:
        scopes, expires = ", ".join(report["scopes"]), _date(report["expires_ms"])
        table.add_row(report["id"], scopes, report["state"], expires, report["note"])
    target.console.print(table)


@token.command()
def revoke(
    tokens: TokensFile, id: Annotated[str, typer.Argument(help="The token's id, as `list` shows it.")], json: Json = None
) -> None:
    """Let a token in no more. Its line stays, so that logs can be understood.

    \b
    pocketrank token revoke tokens.json 9f2c41d07ab3

    Writes the file of tokens; a running server follows within a second.
    """
    from pocketrank.cloud.serving.access.token_file import revoke_token
    from pocketrank.sdk_demo.cli.output import JsonTarget

    target = JsonTarget(json)
    record = revoke_token(tokens, id, now_ms=_now_ms())
    target.write(_report(record, _now_ms()))
    if json != "-":
        typer.echo(f"token {record.id}: revoked {_date(record.revoked_ms or 0)}")


def _report(record: TokenRecord, now_ms: int) -> dict[str, Any]:
    state = "revoked" if record.revoked_ms is not None else "expired" if now_ms >= record.expires_ms else "in force"
    return {
        "id": record.id,
        "scopes": list(record.scopes),
        "state": state,
        "created_ms": record.created_ms,
        "expires_ms": record.expires_ms,
        "revoked_ms": record.revoked_ms,
        "note": record.note,
        "rate": None if record.rate is None else {"per_s": record.rate.per_s, "burst": record.rate.burst},
    }


@contextmanager
def _secret_file(path: Path | None) -> Iterator[Any]:
    """Where the token goes: the new file is there, for its owner only, before a token is made that would be lost."""
    if path is None:
        yield lambda _: None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii")
    except OSError as error:
        raise OptionError("--out", "a new file that can be written", f"{path}: {error.strerror}") from None
    try:
        with file:
            yield lambda secret: file.write(secret + "\n")
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _date(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
