"""From keys to a device: what `keygen` and `release` write is what a device follows."""

from pathlib import Path

import pytest

from benchmarks.reliability.released import make_bundle, serve
from pocketrank.device.bundle.files import RELEASE
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.network.client import CloudClient
from pocketrank.device.updates.release import fetch_release, follow
from pocketrank.export.signing import read_key, sign_manifest
from pocketrank.sdk_demo.cli import main


def _run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_device_follows_what_the_commands_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, folder = tmp_path / "keys", make_bundle(tmp_path / "bundle", 8)
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
