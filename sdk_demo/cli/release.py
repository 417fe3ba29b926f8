"""`pocketrank release`: a signed statement which bundle is current, for which devices, and for how long."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pocketrank.sdk_demo.cli.errors import ConfirmationError

__all__ = ["release"]

_DAY_MS = 86_400_000


def release(
    bundle: Annotated[Path, typer.Argument(help="Folder that `pocketrank export --key` wrote.")],
    key: Annotated[list[Path], typer.Option(help="Private key that signs; may be repeated.")],
    rollout: Annotated[float, typer.Option(min=0, max=100, help="Percentage of devices that install the bundle.")] = 100.0,
    expires_days: Annotated[
        float, typer.Option(min=0.001, max=3650, help="Days until the release expires; devices reject an expired one.")
    ] = 7.0,
    revoke: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Serial of a bundle that devices stop using; may be repeated. Later releases keep it."),
    ] = None,
    kill: Annotated[bool, typer.Option("--kill", help="No device runs a model: all feeds keep cloud order.")] = False,
    app: Annotated[
        str | None,
        typer.Option(help="App that the release must be for, else it fails. [default: the bundle's]"),
    ] = None,
    channel: Annotated[
        str | None, typer.Option(help="Channel of the app, such as staging, checked in the same way. [default: the bundle's]")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Sign although this machine's clock may be wrong.")] = False,
) -> None:
    """Sign a release of a bundle: which devices install it, which bundles are revoked, or that no device runs a model.

    Devices fetch the release about once an hour. A device that is part of a roll-out at 1 % is also part of it at 10 %; the
    others keep their bundle. A release is valid for days only, so that nobody can withhold a newer one for long: sign it again
    before it expires. Serials only increase: to roll back, revoke the bundle and export the old models under a new serial.

    \b
    pocketrank release runs/bundle --key keys/release --rollout 1
    pocketrank release runs/bundle --key keys/release --rollout 10 --expires-days 7
    pocketrank release runs/bundle --key keys/release --rollout 0 --revoke 8
    pocketrank release runs/bundle --key keys/release --kill

    This machine's clock dates the release, and devices refuse one that is dated two days ahead of their own clocks. So the
    command asks before it signs when its clock is behind the last release, or more than 90 days from both the last release and
    the bundle; without a terminal it fails then, unless --yes is given. It never asks before a --kill, which devices follow
    whatever its date.

    Writes release.json into the bundle's folder, from which a running `pocketrank serve --bundle` reads it.
    """
    from pocketrank.export.signing import clock_doubt, read_key, write_release

    keys, now_ms = [read_key(path) for path in key], time.time_ns() // 1_000_000
    if not (yes or kill) and (doubt := clock_doubt(bundle, now_ms)) is not None:
        date = datetime.fromtimestamp(now_ms / 1000, UTC)
        doubt = f"this machine's clock says {date:%Y-%m-%d %H:%M} UTC and may be wrong: {doubt}"
        if not sys.stdin.isatty():
            raise ConfirmationError(f"{doubt}; set the clock, or pass --yes to sign all the same")
        typer.confirm(f"{doubt}. Sign all the same?", abort=True)
    signed = write_release(
        bundle,
        keys,
        now_ms=now_ms,
        lasts_ms=round(expires_days * _DAY_MS),
        rollout=rollout,
        revoke=revoke or (),
        kill=kill,
        app=app,
        channel=channel,
    )
    scope = "no device runs a model" if signed.kill else f"bundle {signed.bundle.serial} for {signed.rollout:g} % of devices"
    revoked = f", revoked: {', '.join(map(str, signed.revoked))}" if signed.revoked else ""
    typer.echo(f"release {signed.serial}: {scope}{revoked}, expires in {expires_days:g} days")
