"""`pocketrank release`: says which bundle is current, for whom, and for how long."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["release"]

_DAY_MS = 86_400_000


def release(
    bundle: Annotated[Path, typer.Argument(help="Folder that `pocketrank export --key` wrote.")],
    key: Annotated[list[Path], typer.Option(help="Private key that signs; repeat it for several.")],
    rollout: Annotated[float, typer.Option(min=0, max=100, help="Percentage of devices that get the bundle.")] = 100.0,
    expires_days: Annotated[
        float, typer.Option(min=0.001, max=3650, help="Days after which devices no longer believe the release.")
    ] = 7.0,
    revoke: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Serial of a bundle that devices leave; repeat it for several. Stays in later releases."),
    ] = None,
    kill: Annotated[bool, typer.Option("--kill", help="No device runs a model: all feeds are in cloud order.")] = False,
) -> None:
    """Sign a release of a bundle: which devices get it, which bundles they leave, or that none runs a model.

    Devices ask for the release every hour or so. One that is in at 1 % stays in at 10 %; those outside keep the bundle they
    have. A release is short-lived, so that nobody can hide a newer one for long: sign again before it expires. Serials only
    grow: to take a bundle back, revoke it, and export the old models under a new serial.

    \b
    pocketrank release runs/bundle --key keys/release --rollout 1
    pocketrank release runs/bundle --key keys/release --rollout 10 --expires-days 7
    pocketrank release runs/bundle --key keys/release --rollout 0 --revoke 8
    pocketrank release runs/bundle --key keys/release --kill

    Writes release.json into the bundle's folder; a running `pocketrank serve --bundle` sends it from then on.
    """
    from pocketrank.export.signing import read_key, write_release

    made = write_release(
        bundle,
        [read_key(path) for path in key],
        now_ms=time.time_ns() // 1_000_000,
        lasts_ms=round(expires_days * _DAY_MS),
        rollout=rollout,
        revoke=revoke or (),
        kill=kill,
    )
    whom = "no device runs a model" if made.kill else f"bundle {made.bundle.serial} for {made.rollout:g} % of devices"
    revoked = f", revoked: {', '.join(map(str, made.revoked))}" if made.revoked else ""
    typer.echo(f"release {made.serial}: {whom}{revoked}, for {expires_days:g} days")
