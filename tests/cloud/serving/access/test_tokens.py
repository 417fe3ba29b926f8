import logging
import os
from pathlib import Path

import pytest

from pocketrank.cloud.serving.access.limits import SCOPES, RateLimit, TokenScope
from pocketrank.cloud.serving.access.token_file import TokenFileError, issue_token, revoke_token
from pocketrank.cloud.serving.access.tokens import AuthError, TokenFile, TokenFileConfig

NOW_S = 1_000_000.0


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Door:
    """A token file and its clocks."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens.json"
        self.clock, self.ticks = Clock(NOW_S), Clock(0.0)
        self.token = self.issue("device")
        self.tokens = TokenFile(self.path, TokenFileConfig(check_every_s=1.0), clock=self.clock, ticks=self.ticks)

    def issue(self, *scopes: TokenScope, lasts_s: float = 3600.0, rate: RateLimit | None = None) -> str:
        return issue_token(self.path, scopes, now_ms=int(NOW_S * 1000), lasts_ms=int(lasts_s * 1000), rate=rate).token

    def why(self, authorization: bytes | None, scope: TokenScope = "device") -> str:
        """Why one is not let in; empty for one that is."""
        try:
            self.tokens.check(authorization, scope)
        except AuthError as error:
            refused = error
        else:
            return ""
        assert refused.status == (403 if refused.reason == "scope" else 401)
        challenge = refused.headers["WWW-Authenticate"]
        assert challenge.startswith('Bearer realm="pocketrank"')
        told = {"missing": "", "scope": f', error="insufficient_scope", scope="{scope}"'}
        assert challenge.endswith(told.get(refused.reason, ', error="invalid_token"'))
        assert _secret(authorization) not in f"{refused} {refused.got} {refused.expected} {challenge}"
        return refused.reason

    def look(self) -> None:
        self.ticks.now += 1.0


def _bearer(token: str) -> bytes:
    return b"Bearer " + token.encode()


def _secret(authorization: bytes | None) -> str:
    text = (authorization or b"").decode("latin-1").split("_")[-1]
    return text[-20:] if len(text) >= 64 else "a secret"


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


def test_a_token_with_the_scope_is_let_in(tmp_path: Path) -> None:
    door = Door(tmp_path)
    both = door.issue("device", "publish", rate=RateLimit(5.0, 7))
    door.look()
    grant = door.tokens.check(_bearer(both), "publish")
    assert (grant.id, grant.scopes, grant.rate) == (both.split("_")[1], {"device", "publish"}, RateLimit(5.0, 7))
    assert door.tokens.check(b"bEARER " + door.token.encode(), "device").rate is None
    assert door.tokens.count == 2


def test_no_scope_implies_another(door: Door) -> None:
    of_scope = {scope: door.issue(scope) for scope in SCOPES}
    door.look()
    for held, token in of_scope.items():
        for needed in SCOPES:
            assert door.why(_bearer(token), needed) == ("" if held == needed else "scope")


@pytest.mark.parametrize(
    "text", [b"!", b"prk_", b"Bearer", b"bearer ", b"Basic dXNlcjpwYXNz", b"Bearer prk_" + b"0" * 5000, b"\xff" * 88]
)
def test_what_is_no_token_is_not_let_in(door: Door, text: bytes) -> None:
    assert door.why(text) == "malformed"
    assert door.why(None) == door.why(b"") == "missing"


def test_a_token_changed_anywhere_is_not_let_in(door: Door) -> None:
    whole = _bearer(door.token)
    assert door.why(whole) == ""
    for at in range(len(b"Bearer "), len(whole)):
        assert door.why(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]) in ("wrong", "malformed")
    for other in (whole[:-1], whole + b"0", b" " + whole, whole + b" ", whole.replace(b" ", b"  "), whole.upper()):
        assert door.why(other) in ("wrong", "malformed")


def test_an_unknown_id_is_a_wrong_secret(door: Door) -> None:
    name, secret = door.token.split("_")[1:]
    assert door.why(_bearer(f"prk_{'0' * 12}_{secret}")) == "wrong"
    assert door.why(_bearer(f"prk_{name}_{'0' * 64}")) == "wrong"


def test_a_token_expires_on_the_moment_without_a_change_of_the_file(door: Door) -> None:
    door.clock.now += 3599.999
    assert door.why(_bearer(door.token)) == ""
    door.clock.now += 0.001
    assert door.why(_bearer(door.token)) == "expired"
    door.path.unlink()
    door.look()
    assert door.why(_bearer(door.token)) == "expired"


def test_a_revoked_token_is_out_at_the_next_look_and_only_its_owner_is_told_why(door: Door) -> None:
    name = door.token.split("_")[1]
    revoke_token(door.path, name, now_ms=1)
    assert door.why(_bearer(door.token)) == ""
    door.look()
    assert door.why(_bearer(door.token)) == "revoked"
    assert door.why(_bearer(f"prk_{name}_{'0' * 64}")) == "wrong"


def test_a_token_made_later_is_let_in_at_the_next_look(door: Door) -> None:
    new = door.issue("device")
    assert door.why(_bearer(new)) == "wrong"
    door.ticks.now += 0.999
    assert door.why(_bearer(new)) == "wrong"
    door.ticks.now += 0.001
    assert door.why(_bearer(new)) == ""


def test_a_change_within_a_tick_of_the_files_clock_is_seen(door: Door) -> None:
    # As an editor writes: the same file, the same size, the same time.
    new = door.issue("device")
    os.utime(door.path, (NOW_S, NOW_S))
    door.look()
    assert door.why(_bearer(new)) == ""
    status, text = os.stat(door.path), door.path.read_text()
    door.path.write_text(text.replace(new.split("_")[1], "0" * 12))
    os.utime(door.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    door.look()
    assert door.why(_bearer(new)) == "wrong"


@pytest.mark.parametrize("harm", ["vanished", "broken", "cut", "emptied", "opened"])
def test_a_harmed_file_leaves_what_was_and_is_told_once(door: Door, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    whole = door.path.read_bytes()
    match harm:
        case "vanished":
            door.path.unlink()
        case "broken":
            door.path.write_bytes(whole.replace(b"scopes", b"scoops"))
        case "cut":
            door.path.write_bytes(whole[:-9])
        case "emptied":
            door.path.write_bytes(b"")
        case "opened":
            door.path.chmod(0o606)
    for _ in range(3):
        door.look()
        assert door.why(_bearer(door.token)) == ""
        assert door.why(b"Bearer prk_" + b"0" * 12 + b"_" + b"0" * 64) == "wrong"
        assert door.why(None) == "missing"
    assert door.tokens.trouble is not None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert str(door.path) in caplog.text
    door.path.write_bytes(whole)
    door.path.chmod(0o600)
    revoke_token(door.path, door.token.split("_")[1], now_ms=1)
    door.look()
    assert door.why(_bearer(door.token)) == "revoked"
    assert door.tokens.trouble is None
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_an_emptied_table_lets_nobody_in(door: Door) -> None:
    door.path.write_text('{"version": 1, "tokens": []}')
    door.look()
    assert door.why(_bearer(door.token)) == "wrong"


@pytest.mark.parametrize("text", [None, "", "{", '{"tokens": 1}'])
def test_a_broken_file_at_the_start_is_a_typed_error(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "tokens.json"
    if text is not None:
        path.write_text(text)
        path.chmod(0o600)
    with pytest.raises(TokenFileError, match=str(path)):
        TokenFile(path)


def test_a_file_swapped_through_a_link_is_seen(tmp_path: Path) -> None:
    """As Kubernetes changes a mounted secret: a link to another folder, and files whose times say nothing."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = Door(tmp_path / "one")
    second = Door(tmp_path / "two")
    for door in (first, second):
        os.utime(door.path, (1, 1))
    (tmp_path / "now").symlink_to("one")
    ticks = Clock(0.0)
    tokens = TokenFile(tmp_path / "now" / "tokens.json", clock=Clock(NOW_S), ticks=ticks)
    assert tokens.check(_bearer(first.token), "device").id in first.token
    (tmp_path / "next").symlink_to("two")
    os.replace(tmp_path / "next", tmp_path / "now")
    ticks.now += 1.0
    assert tokens.check(_bearer(second.token), "device").id in second.token
    with pytest.raises(AuthError):
        tokens.check(_bearer(first.token), "device")
