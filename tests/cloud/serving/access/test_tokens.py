import logging
import os
from pathlib import Path

import pytest

from pocketrank.cloud.serving.access.limits import SCOPES, RateLimit, TokenScope
from pocketrank.cloud.serving.access.tokens import AuthError, TokenFile, TokenFileError, issue_token, revoke_token

NOW_S = 1_000_000.0


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Tokens:
    """A token file, the check of its tokens, and its clocks."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens.json"
        self.clock, self.ticks = Clock(NOW_S), Clock(0.0)
        self.token = self.issue("device")
        self.file = TokenFile(self.path, check_every_s=1.0, clock=self.clock, ticks=self.ticks)

    def issue(self, *scopes: TokenScope, lasts_s: float = 3600.0, rate: RateLimit | None = None) -> str:
        return issue_token(self.path, scopes, now_ms=int(NOW_S * 1000), lasts_ms=int(lasts_s * 1000), rate=rate).token

    def why(self, authorization: bytes | None, scope: TokenScope = "device") -> str:
        """Return why a caller is refused; empty for one that is not."""
        try:
            self.file.check(authorization, scope)
        except AuthError as error:
            refused = error
        else:
            return ""
        assert refused.status == (403 if refused.reason == "scope" else 401)
        challenge = refused.headers["WWW-Authenticate"]
        assert challenge.startswith('Bearer realm="pocketrank"')
        expected = {"missing": "", "scope": f', error="insufficient_scope", scope="{scope}"'}
        assert challenge.endswith(expected.get(refused.reason, ', error="invalid_token"'))
        assert _secret(authorization) not in f"{refused} {refused.got} {refused.expected} {challenge}"
        return refused.reason

    def refresh(self) -> None:
        self.ticks.now += 1.0


def _bearer(token: str) -> bytes:
    return b"Bearer " + token.encode()


def _secret(authorization: bytes | None) -> str:
    text = (authorization or b"").decode("latin-1").split("_")[-1]
    return text[-20:] if len(text) >= 64 else "a secret"


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path)


def test_a_token_with_the_scope_is_accepted(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    both = tokens.issue("device", "publish", rate=RateLimit(5.0, 7))
    tokens.refresh()
    record = tokens.file.check(_bearer(both), "publish")
    assert (record.id, set(record.scopes), record.rate) == (both.split("_")[1], {"device", "publish"}, RateLimit(5.0, 7))
    assert tokens.file.check(b"bEARER " + tokens.token.encode(), "device").rate is None


def test_no_scope_implies_another(tokens: Tokens) -> None:
    of_scope = {scope: tokens.issue(scope) for scope in SCOPES}
    tokens.refresh()
    for held, token in of_scope.items():
        for needed in SCOPES:
            assert tokens.why(_bearer(token), needed) == ("" if held == needed else "scope")


@pytest.mark.parametrize(
    "text", [b"!", b"prk_", b"Bearer", b"bearer ", b"Basic dXNlcjpwYXNz", b"Bearer prk_" + b"0" * 5000, b"\xff" * 88]
)
def test_malformed_tokens_are_refused(tokens: Tokens, text: bytes) -> None:
    assert tokens.why(text) == "malformed"
    assert tokens.why(None) == tokens.why(b"") == "missing"


def test_a_token_changed_anywhere_is_refused(tokens: Tokens) -> None:
    whole = _bearer(tokens.token)
    assert tokens.why(whole) == ""
    for at in range(len(b"Bearer "), len(whole)):
        assert tokens.why(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]) in ("wrong", "malformed")
    for other in (whole[:-1], whole + b"0", b" " + whole, whole + b" ", whole.replace(b" ", b"  "), whole.upper()):
        assert tokens.why(other) in ("wrong", "malformed")


def test_an_unknown_id_is_refused_as_a_wrong_secret_is(tokens: Tokens) -> None:
    name, secret = tokens.token.split("_")[1:]
    assert tokens.why(_bearer(f"prk_{'0' * 12}_{secret}")) == "wrong"
    assert tokens.why(_bearer(f"prk_{name}_{'0' * 64}")) == "wrong"


def test_a_token_expires_to_the_millisecond_without_a_change_of_the_file(tokens: Tokens) -> None:
    tokens.clock.now += 3599.999
    assert tokens.why(_bearer(tokens.token)) == ""
    tokens.clock.now += 0.001
    assert tokens.why(_bearer(tokens.token)) == "expired"
    tokens.path.unlink()
    tokens.refresh()
    assert tokens.why(_bearer(tokens.token)) == "expired"


def test_a_revoked_token_is_refused_at_the_next_check_and_only_its_owner_learns_why(tokens: Tokens) -> None:
    name = tokens.token.split("_")[1]
    revoke_token(tokens.path, name, now_ms=1)
    assert tokens.why(_bearer(tokens.token)) == ""
    tokens.refresh()
    assert tokens.why(_bearer(tokens.token)) == "revoked"
    assert tokens.why(_bearer(f"prk_{name}_{'0' * 64}")) == "wrong"


def test_a_token_issued_later_is_accepted_at_the_next_check(tokens: Tokens) -> None:
    new = tokens.issue("device")
    assert tokens.why(_bearer(new)) == "wrong"
    tokens.ticks.now += 0.999
    assert tokens.why(_bearer(new)) == "wrong"
    tokens.ticks.now += 0.001
    assert tokens.why(_bearer(new)) == ""


def test_a_change_within_a_tick_of_the_file_systems_clock_is_noticed(tokens: Tokens) -> None:
    # As an editor writes: the same file, the same size, the same time.
    new = tokens.issue("device")
    os.utime(tokens.path, (NOW_S, NOW_S))
    tokens.refresh()
    assert tokens.why(_bearer(new)) == ""
    status, text = os.stat(tokens.path), tokens.path.read_text()
    tokens.path.write_text(text.replace(new.split("_")[1], "0" * 12))
    os.utime(tokens.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    tokens.refresh()
    assert tokens.why(_bearer(new)) == "wrong"


@pytest.mark.parametrize("damage", ["vanished", "broken", "cut", "emptied", "opened"])
def test_a_damaged_file_leaves_the_tokens_valid_and_is_logged_once(
    tokens: Tokens, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    whole = tokens.path.read_bytes()
    match damage:
        case "vanished":
            tokens.path.unlink()
        case "broken":
            tokens.path.write_bytes(whole.replace(b"scopes", b"scoops"))
        case "cut":
            tokens.path.write_bytes(whole[:-9])
        case "emptied":
            tokens.path.write_bytes(b"")
        case "opened":
            tokens.path.chmod(0o606)
    for _ in range(3):
        tokens.refresh()
        assert tokens.why(_bearer(tokens.token)) == ""
        assert tokens.why(b"Bearer prk_" + b"0" * 12 + b"_" + b"0" * 64) == "wrong"
        assert tokens.why(None) == "missing"
    for _ in range(2):
        with pytest.raises(TokenFileError, match=str(tokens.path)):
            tokens.file.check_file()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert str(tokens.path) in caplog.text
    tokens.path.write_bytes(whole)
    tokens.path.chmod(0o600)
    revoke_token(tokens.path, tokens.token.split("_")[1], now_ms=1)
    tokens.refresh()
    assert tokens.why(_bearer(tokens.token)) == "revoked"
    tokens.file.check_file()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_an_empty_list_refuses_everybody(tokens: Tokens) -> None:
    tokens.path.write_text('{"version": 1, "tokens": []}')
    tokens.refresh()
    assert tokens.why(_bearer(tokens.token)) == "wrong"


@pytest.mark.parametrize("text", [None, "", "{", '{"tokens": 1}'])
def test_a_broken_file_at_the_start_is_a_typed_error(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "tokens.json"
    if text is not None:
        path.write_text(text)
        path.chmod(0o600)
    with pytest.raises(TokenFileError, match=str(path)):
        TokenFile(path)


def test_a_file_swapped_through_a_link_is_noticed(tmp_path: Path) -> None:
    """Change the file as Kubernetes does with a mounted secret: a link to another folder, and files of equal times."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = Tokens(tmp_path / "one")
    second = Tokens(tmp_path / "two")
    for tokens in (first, second):
        os.utime(tokens.path, (1, 1))
    (tmp_path / "now").symlink_to("one")
    ticks = Clock(0.0)
    current = TokenFile(tmp_path / "now" / "tokens.json", clock=Clock(NOW_S), ticks=ticks)
    assert current.check(_bearer(first.token), "device").id in first.token
    (tmp_path / "next").symlink_to("two")
    os.replace(tmp_path / "next", tmp_path / "now")
    ticks.now += 1.0
    assert current.check(_bearer(second.token), "device").id in second.token
    with pytest.raises(AuthError):
        current.check(_bearer(first.token), "device")
