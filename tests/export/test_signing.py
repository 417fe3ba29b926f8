import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.reliability.released import KEYS, NOW_MS, RELEASE_KEY, make_bundle
from pocketrank.device.bundle.files import MANIFEST, RELEASE
from pocketrank.device.codec import from_json
from pocketrank.device.contract import Release
from pocketrank.export.errors import ExportOutputError, SigningKeyError
from pocketrank.export.signing import generate_key, last_release, public_key, read_key, write_release

DAY_MS = 86_400_000


def test_a_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "bundle"
    public = generate_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (tmp_path / "keys" / "bundle.pub").read_text() == public + "\n"
    assert public_key(read_key(path)) == public
    assert public not in path.read_text()
    before = path.read_bytes()
    with pytest.raises(SigningKeyError, match="a new file, got an existing one"):
        generate_key(path)
    assert path.read_bytes() == before
    assert generate_key(tmp_path / "another") != public


def _open_to_all(path: Path) -> None:
    path.chmod(0o644)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "a private key, got No such file"),
        (_open_to_all, "chmod 600"),
        (lambda path: path.write_text("ab"), "32 bytes in hex"),
        (lambda path: path.write_text("z" * 64), "32 bytes in hex"),
        (lambda path: path.write_bytes(b"\xff"), "32 bytes in hex"),
    ],
)
def test_what_is_no_key(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    generate_key(tmp_path / "key")
    spoil(tmp_path / "key")
    with pytest.raises(SigningKeyError, match=message):
        read_key(tmp_path / "key")


def _release(folder: Path, now_ms: int = NOW_MS, **changes: object) -> Release:
    return write_release(folder, [RELEASE_KEY], now_ms=now_ms, lasts_ms=7 * DAY_MS, **changes)  # type: ignore[arg-type]


def test_a_release_names_the_bundle_and_is_signed(tmp_path: Path) -> None:
    make_bundle(tmp_path, 8)
    release = _release(tmp_path, rollout=10.0)
    text = KEYS.open("release", (tmp_path / RELEASE).read_bytes(), RELEASE)
    assert from_json(text, Release) == release == last_release(tmp_path)
    assert (release.bundle.serial, release.rollout, release.salt) == (8, 10, "small/8")
    assert release.bundle.manifest_bytes == (tmp_path / MANIFEST).stat().st_size
    assert release.expires_ms - release.created_ms == 7 * DAY_MS


def test_a_release_is_for_the_feed_of_its_bundle(tmp_path: Path) -> None:
    make_bundle(tmp_path, 8, app="reels", channel="staging")
    assert _release(tmp_path).feed == ("reels", "staging")
    assert _release(tmp_path, app="reels", channel="staging").feed == ("reels", "staging")
    for given in ({"app": "shop"}, {"channel": "production"}, {"channel": ""}):
        with pytest.raises(ExportOutputError, match="a bundle for app"):
            _release(tmp_path, **given)
    make_bundle(tmp_path, 9)
    release = _release(tmp_path)
    assert release.feed == ("", "")
    assert b'"app"' not in KEYS.open("release", (tmp_path / RELEASE).read_bytes(), RELEASE)
    with pytest.raises(ExportOutputError, match="got one for no app or channel"):
        _release(tmp_path, app="reels")


def test_serials_grow_whatever_happens_to_the_last_release(tmp_path: Path) -> None:
    make_bundle(tmp_path, 8)
    first, second = _release(tmp_path), _release(tmp_path)
    assert second.serial == first.serial + 1
    (tmp_path / RELEASE).unlink()
    assert _release(tmp_path, NOW_MS + 2000).serial > second.serial


def test_what_was_revoked_stays_so_and_a_kill_does_not(tmp_path: Path) -> None:
    make_bundle(tmp_path, 8)
    assert _release(tmp_path, revoke=[7], kill=True).kill
    after = _release(tmp_path, revoke=[5, 7])
    assert (after.revoked, after.kill) == ((5, 7), False)


@pytest.mark.parametrize("spoil", [lambda f: (f / MANIFEST).unlink(), lambda f: (f / RELEASE).write_bytes(b"{}")])
def test_no_bundle_or_a_release_that_cannot_be_read(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    make_bundle(tmp_path, 8)
    spoil(tmp_path)
    with pytest.raises(ExportOutputError):
        _release(tmp_path)


def test_numbers_out_of_range_leave_the_last_release(tmp_path: Path) -> None:
    make_bundle(tmp_path, 8)
    _release(tmp_path)
    before = (tmp_path / RELEASE).read_bytes()
    with pytest.raises(ExportOutputError, match="rollout"):
        _release(tmp_path, rollout=101)
    assert (tmp_path / RELEASE).read_bytes() == before
