"""`pocketrank release`: a signed statement which bundle is current, for which devices, and for how long."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

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

    Writes release.json into the bundle's folder, from which a running `pocketrank serve --bundle` reads it.
    """
    from pocketrank.export.signing import read_key, write_release

    signed = write_release(
        bundle,
        [read_key(path) for path in key],
        now_ms=time.time_ns() // 1_000_000,
        lasts_ms=round(expires_days * _DAY_MS),
        rollout=rollout,
        revoke=revoke or (),
        kill=kill,
    )
    scope = "no device runs a model" if signed.kill else f"bundle {signed.bundle.serial} for {signed.rollout:g} % of devices"
    revoked = f", revoked: {', '.join(map(str, signed.revoked))}" if signed.revoked else ""
    typer.echo(f"release {signed.serial}: {scope}{revoked}, expires in {expires_days:g} days")
