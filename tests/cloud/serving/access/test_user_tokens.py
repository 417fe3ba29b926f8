"""Users' tokens, their keys, and what a server lets a user do."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pocketrank.cloud.serving.access.access import Access
from pocketrank.cloud.serving.access.limits import LimitsConfig, RateLimit, TooManyError
from pocketrank.cloud.serving.access.secret_file import TokenFileError
from pocketrank.cloud.serving.access.tokens import AuthError, TokenFile, issue_token
from pocketrank.cloud.serving.access.user_keys import UserKeysConfig
from pocketrank.cloud.serving.access.user_tokens import UserKeyFile
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.device.codec import from_json, from_msgpack, to_msgpack
from pocketrank.device.contract import FeedbackBatch, FeedbackReceipt, Page, id_code
from tests.cloud.events import event
from tests.cloud.id_dictionaries import small_run_with_texts
from tests.cloud.serving.access.backend import ALGORITHMS, Backend
from tests.cloud.serving.live import MSGPACK, Live, live, request, until
from tests.cloud.small_published import small_run


class Clocks:
    """Clocks that a test moves; Unix time goes on from now."""

    def __init__(self) -> None:
        self.ahead_s, self.ticks_s = 0.0, 0.0

    def file(self, config: UserKeysConfig) -> UserKeyFile:
        return UserKeyFile(config, clock=lambda: time.time() + self.ahead_s, ticks=lambda: self.ticks_s)


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    return Backend(tmp_path / "user-keys.json")


def _bearer(token: str) -> bytes:
    return b"Bearer " + token.encode()


def _why(keys: UserKeyFile, token: str | bytes | None, scope: Any = "device") -> str:
    """Why a token is refused; empty if it is not. No answer holds a part of the token."""
    header = token if token is None or isinstance(token, bytes) else _bearer(token)
    try:
        keys.check(header, scope)
    except AuthError as error:
        said = f"{error} {error.headers}"
        if isinstance(token, str) and token.count(".") == 2:
            assert not any(len(part) > 8 and part in said for part in token.split("."))
        return f"{error.status} {error.reason}"
    return ""


@pytest.mark.parametrize("kid", ALGORITHMS)
def test_a_token_speaks_for_its_user(backend: Backend, kid: str) -> None:
    keys = UserKeyFile(UserKeysConfig(backend.file))
    for user_id in (0, 7, -7, 2**63 - 1, -(2**63)):
        for _ in range(2):  # verified, and remembered
            assert keys.check(_bearer(backend.token(user_id, kid)), "device").user_id == user_id
    assert keys.check(b"bEARER " + backend.token(3, kid).encode(), "device").user_id == 3


def test_a_user_may_do_nothing_but_what_a_device_does(backend: Backend) -> None:
    keys = UserKeyFile(UserKeysConfig(backend.file))
    assert [_why(keys, backend.token(), scope) for scope in ("device", "publish", "admin")] == ["", "403 scope", "403 scope"]


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": None}, "401 wrong"), ({"sub": None}, "401 wrong"), ({"exp": 1}, "401 expired"),
        ({"exp": "soon"}, "401 malformed"),
        ({"exp": float("inf")}, "401 malformed"), ({"exp": float("nan")}, "401 malformed"), ({"exp": 10**30}, "401 wrong"),
        ({"exp": time.time() + 90_000}, "401 wrong"), ({"nbf": time.time() + 3600}, "401 wrong"),
        ({"iat": time.time() + 3600}, "401 wrong"), ({"aud": "another app"}, "401 wrong"),
        ({"sub": 7}, "401 wrong"), ({"sub": ""}, "401 wrong"), ({"sub": "07"}, "401 wrong"), ({"sub": "7 "}, "401 wrong"),
        ({"sub": "+7"}, "401 wrong"), ({"sub": "-0"}, "401 wrong"), ({"sub": "7.0"}, "401 wrong"),
        ({"sub": "\u0667"}, "401 wrong"),
        ({"sub": str(2**63)}, "401 wrong"), ({"sub": "9" * 900}, "401 wrong"), ({"sub": ["7"]}, "401 wrong"),
    ],
)  # fmt: skip
def test_a_claim_that_is_missing_or_wrong_is_refused(backend: Backend, claims: dict[str, Any], why: str) -> None:
    assert _why(UserKeyFile(UserKeysConfig(backend.file)), backend.token(**{"user_id": 7, **claims})) == why


def test_audience_and_issuer_are_held_when_the_configuration_names_them(backend: Backend) -> None:
    keys = UserKeyFile(UserKeysConfig(backend.file, audience="feed", issuer="backend"))
    for aud, iss, why in (
        ("feed", "backend", ""), (["other", "feed"], "backend", ""), (None, "backend", "401 wrong"),
        ("feed", None, "401 wrong"),
        ("other", "backend", "401 wrong"), ("feed", "other", "401 wrong"),
    ):  # fmt: skip
        assert _why(keys, backend.token(aud=aud, iss=iss)) == why, (aud, iss)


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def test_the_file_decides_the_algorithm_and_not_the_token(backend: Backend, tmp_path: Path) -> None:
    keys = UserKeyFile(UserKeysConfig(backend.file))
    claims = _part({"sub": "7", "exp": int(time.time()) + 600})
    other = Backend(tmp_path / "other.json")
    assert [_why(keys, other.token(kid=kid)) for kid in ALGORITHMS] == ["401 wrong"] * 3  # the same names, other keys
    for algorithm in ("none", "None", "", "HS256", "HS384", "ES384", "EdDSA ", "RS256"):
        head = _part({"alg": algorithm, "typ": "JWT", "kid": "EdDSA"})
        public = backend.jwks[0]["x"].encode()  # the public key as an HMAC secret
        for secret in (public, base64.urlsafe_b64decode(public + b"=")):
            mac = hmac.new(secret, f"{head}.{claims}".encode(), hashlib.sha256).digest()
            signature = base64.urlsafe_b64encode(mac).decode().rstrip("=")
            assert _why(keys, f"{head}.{claims}.{signature}").startswith("401")
            assert _why(keys, f"{head}.{claims}.").startswith("401")
    for kid in (None, 5, "", "unknown", ["EdDSA"], {"a": 1}, "../EdDSA"):
        assert _why(keys, f"{_part({'alg': 'EdDSA', 'kid': kid})}.{claims}.AA").startswith("401")


@pytest.mark.parametrize(
    "text",
    ["", "a", "a.b", "a.b.c", "..", "eyJ.eyJ.eyJ", "prk_x", "é",
     _part([]) + ".e30.AA", _part("x") + ".e30.AA", _part({}) + ".e30.AA"],
)  # fmt: skip
def test_what_is_no_token_is_refused(backend: Backend, text: str) -> None:
    keys = UserKeyFile(UserKeysConfig(backend.file))
    assert _why(keys, text).startswith("401")
    assert _why(keys, text.encode()) in ("401 malformed", "401 missing")  # without `Bearer`
    assert _why(keys, None) == "401 missing"


def test_a_token_changed_anywhere_is_refused(backend: Backend) -> None:
    keys = UserKeyFile(UserKeysConfig(backend.file))
    token = backend.token()
    assert _why(keys, token) == ""
    for at in range(len(token) - 1):  # the bits of the last character that are no part of the signature may change
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        assert _why(keys, changed).startswith("401"), at


def test_a_huge_or_deep_token_is_refused(backend: Backend) -> None:
    keys = UserKeyFile(UserKeysConfig(backend.file))
    assert _why(keys, "x" * 5000) == "401 malformed"
    deep = base64.urlsafe_b64encode(b"[" * 2900).decode()
    assert _why(keys, f"{deep}.e30.AA") == "401 malformed"


def test_what_is_remembered_expires(backend: Backend) -> None:
    clocks = Clocks()
    keys = clocks.file(UserKeysConfig(backend.file, leeway_s=30.0))
    token = backend.token(exp=int(time.time()) + 100)
    assert _why(keys, token) == ""
    clocks.ahead_s = 120
    assert _why(keys, token) == ""  # within the leeway
    clocks.ahead_s = 131
    assert _why(keys, token) == "401 expired"


def test_keys_rotate_without_a_restart(backend: Backend) -> None:
    clocks = Clocks()
    keys = clocks.file(UserKeysConfig(backend.file))
    old = backend.token()
    backend.add("next", "ES256")
    new = backend.token(kid="next")
    assert (_why(keys, old), _why(keys, new)) == ("", "401 wrong")
    backend.write()
    clocks.ticks_s += 1.0
    assert (_why(keys, old), _why(keys, new)) == ("", "")
    backend.jwks = [one for one in backend.jwks if one["kid"] != "EdDSA"]
    backend.write()
    clocks.ticks_s += 1.0
    assert (_why(keys, old), _why(keys, new)) == ("401 wrong", "")  # also what was verified before
    backend.file.write_text("{")
    clocks.ticks_s += 1.0
    assert (_why(keys, old), _why(keys, new)) == ("401 wrong", "")
    with pytest.raises(TokenFileError, match="JSON Web Key Set"):
        keys.check_file()


def test_remembered_tokens_are_bounded(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketrank.cloud.serving.access.user_tokens._VERIFIED_MAX", 3)
    keys = UserKeyFile(UserKeysConfig(backend.file))
    tokens = [backend.token(user, "HS256") for user in range(10)]
    assert [keys.check(_bearer(token), "device").user_id for token in (*tokens, *tokens)] == [*range(10), *range(10)]
    assert len(keys._verified) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kid": None}, "kid"), ({"kid": ""}, "kid"), ({"kid": 5}, "kid"),
        ({"kty": "RSA", "n": "AQAB", "e": "AQAB"}, "kty `RSA`"),
        ({"crv": "P-384"}, "crv `P-384`"), ({"alg": "HS256"}, "alg `HS256`"), ({"use": "enc"}, "whose use is `sig`"),
        ({"d": "c2VjcmV0"}, "a public key, got a private one"), ({"x": "AA"}, "members that make none"), ({"x": 5}, "members"),
        ({"kty": "oct", "crv": None, "k": "c2hvcnQ"}, "32 bytes at least, got 5"),
    ],
)  # fmt: skip
def test_a_key_that_cannot_be_right_is_refused_at_the_start(backend: Backend, change: dict[str, Any], message: str) -> None:
    backend.jwks[0] = {name: value for name, value in {**backend.jwks[0], **change}.items() if value is not None}
    backend.write()
    with pytest.raises(TokenFileError, match=message) as caught:
        UserKeyFile(UserKeysConfig(backend.file))
    assert str(backend.file) in str(caught.value)
    assert "c2hvcnQ" not in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)


def test_two_keys_of_one_name_and_files_of_others_are_refused(backend: Backend) -> None:
    backend.jwks.append(backend.jwks[0])
    backend.write()
    with pytest.raises(TokenFileError, match="each `kid` once, got two keys `EdDSA`"):
        UserKeyFile(UserKeysConfig(backend.file))
    backend.jwks.pop()
    backend.write()
    backend.file.chmod(0o604)
    with pytest.raises(TokenFileError, match="chmod 600"):
        UserKeyFile(UserKeysConfig(backend.file))


def _scope(token: str, address: str = "192.0.2.1") -> dict[str, Any]:
    return {"type": "http", "headers": [(b"authorization", _bearer(token))], "client": (address, 1)}


def _accepted(access: Access, *scopes: dict[str, Any]) -> int:
    for count in range(20):
        try:
            access(scopes[count % len(scopes)], "device")
        except TooManyError:
            return count
    return 20


def test_limits_are_by_user_by_token_and_by_address(backend: Backend, tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    issued = {
        name: issue_token(tmp_path / "tokens", ["device"], now_ms=now_ms, lasts_ms=3_600_000, rate=rate).token
        for name, rate in (("app", None), ("own", RateLimit(0.001, 7)))
    }
    limits = LimitsConfig(user=RateLimit(0.001, 3), device=RateLimit(0.001, 5))
    keys = UserKeyFile(UserKeysConfig(backend.file, app_tokens=True))
    access = Access(TokenFile(tmp_path / "tokens"), limits, keys)
    # A user is one caller, whatever the token and the address.
    assert _accepted(access, _scope(backend.token(1)), _scope(backend.token(1, "ES256"), "192.0.2.2")) == 3
    assert _accepted(access, _scope(backend.token(2))) == 3
    # The phones of a fleet share a token, and each address is a caller.
    assert [_accepted(access, _scope(issued["app"], f"192.0.2.{n}")) for n in range(4)] == [5] * 4
    # A rate of its own holds for all that a token sends.
    assert _accepted(access, *(_scope(issued["own"], f"192.0.2.{n}") for n in range(4))) == 7


def test_the_defaults_suit_a_fleet(tmp_path: Path) -> None:
    """Two thousand phones that share the documented token and send a request each at once."""
    token = issue_token(tmp_path / "t", ["device"], now_ms=0, lasts_ms=1 << 42).token
    access = Access(TokenFile(tmp_path / "t"))
    for phone in range(2000):
        assert access(_scope(token, f"10.0.{phone >> 8}.{phone & 255}"), "device").user_id is None


def test_a_token_of_the_file_speaks_for_any_user_only_when_that_is_wanted(backend: Backend, tmp_path: Path) -> None:
    made = issue_token(tmp_path / "t", ["device", "admin"], now_ms=0, lasts_ms=1 << 42)
    held = Access(TokenFile(tmp_path / "t"), None, UserKeyFile(UserKeysConfig(backend.file)))
    with pytest.raises(AuthError, match="a user's own token, got one that speaks for any user") as caught:
        held(_scope(made.token), "device")
    assert caught.value.status == 403
    assert held(_scope(made.token), "admin").token_id == made.record.id
    assert held(_scope(backend.token(9)), "device")[:2] == (None, 9)
    free = Access(TokenFile(tmp_path / "t"), None, UserKeyFile(UserKeysConfig(backend.file, app_tokens=True)))
    assert free(_scope(made.token), "device")[:2] == (made.record.id, None)
    keys_alone = Access(None, None, UserKeyFile(UserKeysConfig(backend.file)))
    for scope in ("device", "admin", "publish"):
        with pytest.raises(AuthError):
            keys_alone(_scope(made.token), scope)
        with pytest.raises(AuthError):
            keys_alone({"type": "http", "headers": [], "client": None}, scope)
    assert keys_alone.openapi_security("device") != []


class Site:
    """A server that knows the backend's keys."""

    def __init__(self, server: Live, backend: Backend) -> None:
        self.server, self.backend = server, backend

    def page(self, of: int, asked: int, **more: Any) -> Any:
        return self.server.send("POST", "/v1/page", to_msgpack(request(asked, **more)), {**self.backend.headers(of), **MSGPACK})

    def feedback(self, of: int, *events: Any) -> FeedbackReceipt:
        body = to_msgpack(FeedbackBatch(events=events))
        answer = self.server.send("POST", "/v1/feedback", body, {**self.backend.headers(of), **MSGPACK})
        assert answer.status == 200, answer.body
        return from_msgpack(answer.body, FeedbackReceipt)

    def first(self, user_id: int) -> list[int]:
        """Items of the user's page."""
        answer = self.page(user_id, user_id)
        assert answer.status == 200, answer.body
        return list(from_msgpack(answer.body, Page).candidates.item_id)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("users")
    backend = Backend(folder / "user-keys.json")
    config = ServingConfig(user_keys=UserKeysConfig(backend.file), limits=LimitsConfig(user=None))
    with live(small_run(folder / "run").folder, folder / "feedback.db", config=config) as server:
        yield Site(server, backend)


def test_no_page_and_no_vector_of_another_user(site: Site) -> None:
    mine = site.page(1, 1)
    assert mine.status == 200
    assert from_msgpack(mine.body, Page).user_vector is not None
    for other in (2, 50, -1, 2**63 - 1):
        answer = site.page(1, other, feedback=(event(1, 1003), event(other, 1003)))
        assert answer.status == 403
        body = answer.json()
        assert {name: body[name] for name in ("path", "expected", "got")} == {
            "path": "$.user_id", "expected": "the user of the token", "got": "another user",
        }  # fmt: skip
        assert b"vector" not in answer.body


def test_events_of_other_users_are_refused_one_by_one(site: Site) -> None:
    events = [event(3, 1000), event(2, 1001), event(3, 1002), event(1, 1003)]
    receipt = site.feedback(3, *events)
    assert (receipt.accepted, receipt.duplicates, [one.index for one in receipt.refused]) == (2, 0, [1, 3])
    assert receipt.settles(events)
    assert "the user of the token, got another user" in receipt.refused[0].reason
    assert site.feedback(2, events[1]).accepted == 1  # nothing of it was taken before
    other_only = site.feedback(3, event(2, 1004))
    assert (other_only.accepted, len(other_only.refused)) == (0, 1)


def test_a_page_requests_events_of_other_users_have_no_effect(site: Site) -> None:
    foreign = event(2, 1005)
    assert site.page(4, 4, feedback=(event(4, 1001), foreign)).status == 200
    assert site.feedback(2, foreign) == FeedbackReceipt(accepted=1, duplicates=0)


def test_nobody_takes_the_event_ids_of_another(site: Site) -> None:
    ids = [f"5-session/{n}" for n in range(4)]
    assert site.feedback(6, *(event(6, 1000, event_id=one) for one in ids)).accepted == 4
    assert site.feedback(5, *(event(5, 1000, event_id=one) for one in ids)).accepted == 4
    assert site.feedback(5, *(event(5, 1000, event_id=one) for one in ids)).duplicates == 4


def test_a_server_for_users_is_not_open(site: Site) -> None:
    for method, path in (
        ("POST", "/v1/page"),
        ("POST", "/v1/feedback"),
        ("GET", "/metrics"),
        ("GET", "/v1/bundle/manifest.json"),
    ):
        assert site.server.send(method, path, b"").status == 401
    assert site.server.send("GET", "/metrics", headers=site.backend.headers()).status == 403
    assert site.server.send("GET", "/v1/bundle/manifest.json", headers=site.backend.headers()).status == 404
    assert site.server.send("GET", "/readyz").json()["checks"]["user_keys"] == "ok"


def test_a_running_server_follows_the_keys(tmp_path: Path) -> None:
    backend = Backend(tmp_path / "user-keys.json", ("EdDSA",))
    config = ServingConfig(user_keys=UserKeysConfig(backend.file))
    with live(small_run(tmp_path / "run").folder, tmp_path / "feedback.db", config=config) as server:
        site = Site(server, backend)
        assert site.page(1, 1).status == 200
        backend.jwks.clear()
        backend.keys.clear()
        backend.add("EdDSA", "EdDSA")
        assert site.page(1, 1).status == 401
        backend.write()
        until(lambda: site.page(1, 1).status == 200, "the new key")
        assert from_json(server.send("POST", "/v1/feedback", b'{"events": []}', {
            **backend.headers(), "Content-Type": "application/json",
        }).body, FeedbackReceipt).accepted == 0  # fmt: skip


def test_a_proxy_on_this_machine_says_which_address_asks(tmp_path: Path) -> None:
    token = issue_token(tmp_path / "t", ["device"], now_ms=time.time_ns() // 1_000_000, lasts_ms=3_600_000).token
    config = ServingConfig(tokens=tmp_path / "t", limits=LimitsConfig(device=RateLimit(0.001, 2)))
    with live(small_run(tmp_path / "run").folder, tmp_path / "feedback.db", config=config) as server:

        def asked(address: str) -> int:
            headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": address, **MSGPACK}
            return server.send("POST", "/v1/page", to_msgpack(request()), headers).status

        assert [asked("192.0.2.1") for _ in range(3)] == [200, 200, 429]
        assert [asked(f"2001:db8::{n}") for n in range(3)] == [200, 200, 429]  # one network
        assert asked("192.0.2.2") == 200


def test_a_text_is_a_user_where_ids_are_texts(backend: Backend) -> None:
    keys = UserKeyFile(UserKeysConfig(backend.file))
    token = backend.token(sub="Ünï 1")
    assert _why(keys, token) == "401 wrong"
    keys.accept_texts(True)
    assert keys.check(_bearer(token), "device").user_id == "Ünï 1"
    assert keys.check(_bearer(backend.token(sub="7")), "device").user_id == "7"
    assert [_why(keys, backend.token(sub=text)) for text in ("", "x" * 257)] == ["401 wrong"] * 2
    keys.accept_texts(False)
    assert _why(keys, token) == "401 wrong", "what was verified before is verified anew"


def test_a_token_with_a_text_speaks_for_that_user_alone(backend: Backend, tmp_path: Path) -> None:
    run = small_run_with_texts(tmp_path / "run").folder
    with live(run, tmp_path / "feedback.db", config=ServingConfig(user_keys=UserKeysConfig(backend.file))) as server:
        for user in ("user-3", "somebody new"):
            headers = MSGPACK | {"Authorization": f"Bearer {backend.token(sub=user)}"}

            def statuses(*users: int | str, headers: dict[str, str] = headers) -> list[int]:
                bodies = [msgspec.msgpack.encode(msgspec.to_builtins(request()) | {"user_id": user}) for user in users]
                return [server.send("POST", "/v1/page", body, headers).status for body in bodies]

            assert statuses(user, id_code(user), "user-2", "another", id_code("user-2")) == [200, 200, 403, 403, 403]
            events = [msgspec.to_builtins(event()) | {"user_id": one} for one in (user, id_code(user), "user-2", "another")]
            answer = server.send("POST", "/v1/feedback", msgspec.msgpack.encode({"events": events}), headers)
            receipt = from_msgpack(answer.body, FeedbackReceipt)
            assert (receipt.accepted, [one.index for one in receipt.refused]) == (2, [2, 3])
