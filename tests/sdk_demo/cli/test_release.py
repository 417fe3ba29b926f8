"""From keys to a device: what `keygen` and `release` write is what a device follows."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability.released import RELEASE_KEY, make_bundle, serve
from pocketrank.device.bundle.files import RELEASE
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.network.client import CloudClient
from pocketrank.device.updates.release import fetch_release, follow
from pocketrank.export.signing import last_release, read_key, sign_manifest, write_release
from pocketrank.sdk_demo.cli import main

DAY_MS = 86_400_000


def _now() -> int:
    return time.time_ns() // 1_000_000


def _run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_device_follows_what_the_commands_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, folder = tmp_path / "keys", make_bundle(tmp_path / "bundle", 8, created_ms=_now())
    assert _run("keygen", str(keys / "bundle")) == 0
    assert _run("keygen", str(keys / "release")) == 0
    bundle_pub, release_pub = ((keys / f"{name}.pub").read_text().strip() for name in ("bundle", "release"))
    assert bundle_pub in capsys.readouterr().out
    trusted = TrustedKeys((bundle_pub,), (release_pub,))
    sign_manifest(folder, [read_key(keys / "bundle")])

    def release(*options: str) -> None:
        assert _run("release", str(folder), "--key", str(keys / "release"), *options) == 0

    last = None
    with serve() as server, CloudClient(server.url) as client:
        for options, (rollout, revoked, kill) in {
            ("--rollout", "10"): (10, (), False),
            ("--revoke", "6", "--revoke", "7", "--expires-days", "1"): (100, (6, 7), False),
            ("--kill",): (100, (6, 7), True),
        }.items():
            release(*options)
            server.files = {RELEASE: (folder / RELEASE).read_bytes()}
            found = fetch_release(client, trusted)
            follow(found, last, found.created_ms)
            assert (found.rollout, found.revoked, found.kill) == (rollout, revoked, kill)
            last = found
    assert "no device runs a model, revoked: 6, 7, expires in 7 days" in capsys.readouterr().out


def test_a_key_that_others_can_read_signs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_bundle(tmp_path / "bundle", 8)
    assert _run("keygen", str(tmp_path / "key")) == 0
    (tmp_path / "key").chmod(0o640)
    assert _run("release", str(folder), "--key", str(tmp_path / "key")) == 2
    assert "chmod 600" in capsys.readouterr().err
    assert not (folder / RELEASE).exists()


def _doubtful(folder: Path, *, bundle_days: float, release_days: float | None) -> dict[str, Any]:
    """Make a bundle, and a release of it, that are dated so many days after now. Return what `release` is called with."""
    make_bundle(folder / "bundle", 8, created_ms=_now() + round(bundle_days * DAY_MS))
    if release_days is not None:
        write_release(folder / "bundle", [RELEASE_KEY], now_ms=_now() + round(release_days * DAY_MS), lasts_ms=7 * DAY_MS)
    assert _run("keygen", str(folder / "key")) == 0
    return {"args": ("release", str(folder / "bundle"), "--key", str(folder / "key")), "last": last_release(folder / "bundle")}


@pytest.mark.parametrize(
    ("bundle_days", "release_days", "why"),
    [
        (0, 365, "behind the date of release"),
        (0, 1, "behind the date of release"),
        (-1000, -91, "after the date of release"),
        (-91, None, "after the date of bundle 8"),
        (365 * 9, None, "behind the date of bundle 8"),
    ],
)
def test_a_clock_that_may_be_wrong_signs_nothing_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bundle_days: float, release_days: float | None, why: str
) -> None:
    given = _doubtful(tmp_path, bundle_days=bundle_days, release_days=release_days)
    assert _run(*given["args"]) == 2
    said = capsys.readouterr().err
    assert "this machine's clock says" in said
    assert why in said
    assert "--yes" in said
    assert last_release(tmp_path / "bundle") == given["last"]
    assert _run(*given["args"], "--yes") == 0
    signed = last_release(tmp_path / "bundle")
    assert signed is not None
    assert signed.serial > (0 if given["last"] is None else given["last"].serial)


@pytest.mark.parametrize(("bundle_days", "release_days"), [(-1000, -7), (-89, None), (-1, -1000)])
def test_a_clock_near_the_bundle_or_the_last_release_is_not_doubted(
    tmp_path: Path, bundle_days: float, release_days: float | None
) -> None:
    assert _run(*_doubtful(tmp_path, bundle_days=bundle_days, release_days=release_days)["args"]) == 0


def test_a_kill_is_signed_unasked(tmp_path: Path) -> None:
    assert _run(*_doubtful(tmp_path, bundle_days=0, release_days=365)["args"], "--kill") == 0
    signed = last_release(tmp_path / "bundle")
    assert signed is not None
    assert signed.kill


@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 1), (b"y\n", 0)])
def test_a_terminal_is_asked(tmp_path: Path, answer: bytes, code: int) -> None:
    given = _doubtful(tmp_path, bundle_days=0, release_days=365)
    main_end, other_end = pty.openpty()
    try:
        os.write(main_end, answer)
        command = [sys.executable, "-c", "from pocketrank.sdk_demo.cli import main; main()", *given["args"]]
        ran = subprocess.run(command, stdin=other_end, capture_output=True, text=True, timeout=60)
    finally:
        os.close(main_end)
        os.close(other_end)
    assert ran.returncode == code, ran.stderr
    assert "Sign all the same?" in ran.stdout + ran.stderr
    assert (last_release(tmp_path / "bundle") == given["last"]) is (code == 1)


def test_a_bundle_of_another_channel_is_not_released(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_bundle(tmp_path / "bundle", 8, created_ms=_now(), app="reels", channel="staging")
    assert _run("keygen", str(tmp_path / "key")) == 0
    sign = ("release", str(folder), "--key", str(tmp_path / "key"))
    assert _run(*sign, "--channel", "production") == 2
    assert (
        "a bundle for app `reels`, channel `production`, got one for app `reels`, channel `staging`" in capsys.readouterr().err
    )
    assert last_release(folder) is None
    assert _run(*sign, "--app", "reels", "--channel", "staging") == 0
