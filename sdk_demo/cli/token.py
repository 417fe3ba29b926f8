"""`pocketrank token`: the tokens that authorise requests to a server."""

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
from pocketrank.sdk_demo.cli.user_token import user

if TYPE_CHECKING:
    from pocketrank.cloud.serving.access.tokens import TokenRecord

__all__ = ["Scope", "create", "list_all", "revoke", "token"]

_DAY_MS = 86_400_000

TokensFile = Annotated[Path, typer.Argument(metavar="TOKENS", help="File that `pocketrank serve --tokens` reads.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Report as JSON; `-` is stdout. [default: none]")]


class Scope(StrEnum):
    """Requests that a token authorises."""

    device = "device"
    publish = "publish"
    admin = "admin"


token = typer.Typer(name="token", no_args_is_help=True, rich_markup_mode=None)
"""The commands that manage a file of tokens."""


@token.callback()
def _token() -> None:
    """Create, list and revoke the tokens that a server accepts.

    A token has scopes, and no scope implies another: `device` requests pages, sends feedback and downloads the bundle;
    `publish` uploads bundles; `admin` reads metrics and rolls a bundle back. A running `pocketrank serve --tokens` applies
    changes within a second. A token of scope `device` speaks for any user: give it to a gateway. An app gives each user a token
    of their own, which its backend signs; `pocketrank token user` signs one for trying.

    \b
    pocketrank token create tokens.json --scope device --note "the app's gateway"
    pocketrank token create tokens.json --scope publish --out publish.token
    pocketrank token list tokens.json
    pocketrank token revoke tokens.json 9f2c41d07ab3

    Writes the file, readable by you only. It holds digests of the tokens, not the tokens.
    """


@token.command()
def create(
    tokens: TokensFile,
    scope: Annotated[list[Scope], typer.Option(help="Requests that the token authorises; may be repeated.")],
    expires_days: Annotated[float, typer.Option(min=0.0001, max=3650, help="Days until the token expires.")] = 90.0,
    note: Annotated[str, typer.Option(help="Note for readers of the list, such as the owner.")] = "",
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1e6, help="Limit of requests per second, of all callers together. [default: the server's, of each]"
        ),
    ] = None,
    burst: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="Largest burst of requests. [default: ten seconds of the rate]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New file for the token. [default: print it]")] = None,
    json: Json = None,
) -> None:
    """Create a token and show it once.

    \b
    pocketrank token create tokens.json --scope device --expires-days 365
    pocketrank token create tokens.json --scope publish --out publish.token

    Writes the file of tokens; creates it if it does not exist.
    """
    from pocketrank.cloud.serving.access.limits import RateLimit
    from pocketrank.cloud.serving.access.tokens import issue_token
    from pocketrank.sdk_demo.cli.output import JsonTarget

    if burst is not None and rate is None:
        raise OptionError("--burst", "`--rate` as well", str(burst))
    if len(note) > 200:
        raise OptionError("--note", "at most 200 characters", note[:20] + "…")
    if json not in (None, "-") and out is None:
        raise OptionError(
            "--json", "`-`, or `--out` as well: the report would hold the token, and others may read it", str(json)
        )
    target = JsonTarget(json)
    limit = None if rate is None else RateLimit(rate, burst or max(1, round(10 * rate)))
    with _secret_file(out) as write_secret:
        issued = issue_token(
            tokens,
            [item.value for item in scope],
            now_ms=_now_ms(),
            lasts_ms=round(expires_days * _DAY_MS),
            note=note,
            rate=limit,
        )
        write_secret(issued.token)
    report = _report(issued.record, issued.record.created_ms)
    target.write(report if out else {"token": issued.token, **report})
    if json != "-":
        typer.echo(f"token: {issued.token}" if out is None else f"token {issued.record.id} written to {out}")
        scopes = " and ".join(issued.record.scopes)
        typer.echo(f"{scopes}, expires {_date(issued.record.expires_ms)}; the token is not shown again", err=True)


token.command("user")(user)


@token.command("list")
def list_all(tokens: TokensFile, json: Json = None) -> None:
    """List the tokens of a file, oldest first.

    \b
    pocketrank token list tokens.json
    pocketrank token list tokens.json --json -

    Writes the report only.
    """
    from rich.table import Table

    from pocketrank.cloud.serving.access.tokens import list_tokens
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
    """Revoke a token. The list keeps it, so that its id in a log can be looked up.

    \b
    pocketrank token revoke tokens.json 9f2c41d07ab3

    Writes the file of tokens; a running server applies it within a second.
    """
    from pocketrank.cloud.serving.access.tokens import revoke_token
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
    """Yield the function that writes the token. Its file is created first, so that no token is issued that is then lost."""
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
