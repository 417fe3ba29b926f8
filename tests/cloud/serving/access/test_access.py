"""The check of requests, and a table of what each route requires: every route of the OpenAPI document has a row here."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pocketrank.cloud.serving.access.access import SECURITY_SCHEME, Access, Caller, OpenServerError, check_host
from pocketrank.cloud.serving.access.limits import SCOPES, LimitsConfig, RateLimit, TokenScope, TooManyError
from pocketrank.cloud.serving.access.tokens import AuthError, TokenFile, issue_token, revoke_token
from pocketrank.cloud.serving.bundles.store import BundleStoreConfig
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.device.codec import to_json
from pocketrank.device.contract import FeedbackBatch, PageRequest
from tests.cloud.serving.bundle_samples import FILES, publish_of
from tests.cloud.serving.live import Live, live, until, write_bundle
from tests.cloud.small_published import small_run

HOUR_MS = 3_600_000


class Row(NamedTuple):
    """Requirements of a route."""

    scope: TokenScope | None
    """Scope of an accepted token; None when any caller is."""
    path: str
    """The route with values for its parameters."""
    body: bytes | None = None
    kind: str = "application/json"


PAGE = PageRequest(request_id="r", user_id=1, session_id="s", now_ms=1, size=5, split_version=None)

ROWS = {
    "POST /v1/page": Row("device", "/v1/page", to_json(PAGE)),
    "POST /v1/feedback": Row("device", "/v1/feedback", to_json(FeedbackBatch(events=()))),
    "GET /v1/bundle/manifest.json": Row("device", "/v1/bundle/manifest.json"),
    "GET /v1/bundle/manifest.sig": Row("device", "/v1/bundle/manifest.sig"),
    "GET /v1/bundle/release.json": Row("device", "/v1/bundle/release.json"),
    "GET /v1/bundle/files/{path}": Row("device", "/v1/bundle/files/spec.json"),
    "PUT /v1/bundle": Row("publish", "/v1/bundle", to_json(publish_of(FILES))),
    "PUT /v1/bundle/blobs/{sha256}": Row("publish", "/v1/bundle/blobs/" + "0" * 64, b"x", "application/octet-stream"),
    "POST /v1/bundle/rollback": Row("admin", "/v1/bundle/rollback"),
    "PUT /v1/items": Row("publish", "/v1/items", b'{"items": []}'),
    "DELETE /v1/items": Row("publish", "/v1/items", b'{"item_ids": []}'),
    "PUT /v1/users": Row("publish", "/v1/users", b'{"users": []}'),
    "DELETE /v1/users": Row("publish", "/v1/users", b'{"user_ids": []}'),
    "GET /metrics": Row("admin", "/metrics"),
    "GET /drift": Row("admin", "/drift"),
    "GET /healthz": Row(None, "/healthz"),
    "GET /livez": Row(None, "/livez"),
    "GET /readyz": Row(None, "/readyz"),
}
"""Requirements of each route. Probes carry no token, and answer nothing that would need one."""


class Keys:
    """A file of tokens, written before a server reads it: one for each scope, and others that are refused."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.good = {scope: self._issue(scope) for scope in SCOPES}
        self.all_but = {scope: self._issue(*(other for other in SCOPES if other != scope)) for scope in SCOPES}
        self.expired, self.revoked = self._issue(*SCOPES, lasts_ms=-1), self._issue(*SCOPES)

    def _issue(self, *scopes: TokenScope, lasts_ms: int = HOUR_MS) -> str:
        return issue_token(self.file, scopes, now_ms=time.time_ns() // 1_000_000, lasts_ms=lasts_ms).token

    def bad(self, scope: TokenScope) -> dict[str, tuple[int, list[str]]]:
        """Return the status and the `Authorization` headers for each reason of a refusal."""
        good = self.good[scope]
        name, secret = good.split("_")[1:]
        others = [self.good[other] for other in SCOPES if other != scope]
        return {
            "no token": (401, []),
            "wrong": (401, [f"Bearer prk_{name}_{secret[::-1]}", f"Bearer prk_{name[::-1]}_{secret}", f"Bearer {good[:-1]}"]),
            "malformed": (
                401,
                ["", "Bearer", good, f"Basic {good}", f"Bearer {good} {good}", f"Bearer  {good}", f"Bearer {name}"],
            ),
            "expired": (401, [f"Bearer {self.expired}"]),
            "revoked": (401, [f"Bearer {self.revoked}"]),
            "wrong scope": (403, [f"Bearer {token}" for token in (*others, self.all_but[scope])]),
        }


class Guarded:
    """A server with tokens. One of them is revoked while it runs."""

    def __init__(self, server: Live, keys: Keys) -> None:
        self.server, self.keys = server, keys
        paths = server.send("GET", "/openapi.json").json()["paths"]
        self.routes = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
        self.security = {
            f"{method.upper()} {path}": operation.get("security", [])
            for path, methods in paths.items()
            for method, operation in methods.items()
        }

        def accepts_revoked() -> bool:
            return _send(server, ROWS["GET /metrics"], f"Bearer {keys.revoked}", "GET")[0] == 200

        assert accepts_revoked()
        revoke_token(keys.file, keys.revoked.split("_")[1], now_ms=1)
        until(lambda: not accepts_revoked(), "the revocation")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    keys = Keys(folder / "tokens.json")
    limits = LimitsConfig(device=None, publish=None, admin=None)
    config = ServingConfig(tokens=keys.file, limits=limits, bundles=BundleStoreConfig(unverified=True))
    bundle = write_bundle(folder / "bundle", FILES)
    with live(small_run(folder / "run").folder, folder / "feedback.db", bundle, config=config) as server:
        yield Guarded(server, keys)


def _send(server: Live, row: Row, authorization: str | None, method: str) -> tuple[int, dict[str, str]]:
    headers = {"Content-Type": row.kind} if row.body is not None else {}
    if authorization is not None:
        headers["Authorization"] = authorization
    answer = server.send(method, row.path, row.body, headers)
    return answer.status, answer.headers


def test_every_route_has_a_row(guarded: Guarded) -> None:
    assert set(guarded.routes) == set(ROWS), "a new route needs a row: who may use it?"


@pytest.mark.parametrize("kind", ["no token", "wrong", "malformed", "expired", "revoked", "wrong scope"])
def test_every_route_refuses_every_bad_token(guarded: Guarded, kind: str) -> None:
    tried = 0
    for route, row in ROWS.items():
        if row.scope is None:
            continue
        status, headers = guarded.keys.bad(row.scope)[kind]
        for authorization in headers or [None]:
            got, answered = _send(guarded.server, row, authorization, route.split()[0])
            assert got == status, f"{route} with {kind}"
            assert answered["www-authenticate"].startswith('Bearer realm="pocketrank"')
            tried += 1
    assert tried >= sum(row.scope is not None for row in ROWS.values())


def test_every_route_accepts_its_scope_and_documents_it(guarded: Guarded) -> None:
    for route in guarded.routes:
        row, method = ROWS[route], route.split()[0]
        if row.scope is None:
            assert _send(guarded.server, row, None, method)[0] == 200
            assert guarded.security[route] == []
        else:
            assert _send(guarded.server, row, f"Bearer {guarded.keys.good[row.scope]}", method)[0] not in (401, 403, 429)
            assert guarded.security[route] == [{SECURITY_SCHEME: [row.scope]}]


def test_no_other_method_or_spelling_bypasses_the_check(guarded: Guarded) -> None:
    for route in guarded.routes:
        row = ROWS[route]
        if row.scope is None:
            continue
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            assert _send(guarded.server, row, None, method)[0] in (401, 404, 405), f"{method} {row.path}"
        for path in (
            row.path + "/", "/" + row.path, row.path.upper(), row.path + "?token=x", row.path.replace("/v1/", "/v1//"),
            row.path.replace("/", "/./", 1), row.path + "%00", row.path.replace("e", "%65", 1), row.path + ";x",
            "/openapi.json/.." + row.path,
        ):  # fmt: skip
            status, _ = _send(guarded.server, row._replace(path=path), None, route.split()[0])
            assert status in (307, 401, 404, 405), f"{route} as {path}"


def test_only_the_openapi_document_and_its_page_are_public(guarded: Guarded) -> None:
    assert guarded.server.send("GET", "/openapi.json").status == 200
    page = guarded.server.send("GET", "/docs")
    assert page.status == 200
    assert b"<script" not in page.body
    for path in ("/redoc", "/docs/oauth2-redirect"):  # they would load scripts from elsewhere
        assert guarded.server.send("GET", path).status == 404


def _scope(*authorizations: bytes, client: tuple[str, int] | None = ("192.0.2.1", 1)) -> dict[str, object]:
    headers = [(b"host", b"x"), *((b"authorization", value) for value in authorizations)]
    return {"type": "http", "headers": headers, "client": client}


def test_two_authorization_headers_are_refused(tmp_path: Path) -> None:
    token = issue_token(tmp_path / "t", ["device"], now_ms=0, lasts_ms=1 << 42).token
    access, header = Access(TokenFile(tmp_path / "t")), b"Bearer " + token.encode()
    record = access(_scope(header), "device")
    assert record.token_id is not None
    assert record.token_id in token
    with pytest.raises(AuthError, match="one `Authorization`, got several"):
        access(_scope(header, header), "device")


def test_each_token_and_scope_has_a_rate(tmp_path: Path) -> None:
    made = {
        name: issue_token(tmp_path / "t", scopes, now_ms=0, lasts_ms=1 << 42, rate=rate).token
        for name, scopes, rate in (
            ("one", ["device", "admin"], None), ("other", ["device"], None), ("own", ["device"], RateLimit(0.001, 7)),
        )
    }  # fmt: skip
    config = LimitsConfig(device=RateLimit(0.001, 3), admin=None)
    access = Access(TokenFile(tmp_path / "t"), config)

    def accepted(name: str, scope: TokenScope) -> int:
        for count in range(20):
            try:
                access(_scope(b"Bearer " + made[name].encode()), scope)
            except TooManyError:
                return count
        return 20

    assert [accepted(name, "device") for name in made] == [3, 3, 7]
    assert accepted("one", "admin") == 20
    with pytest.raises(AuthError):  # and not TooManyError
        access(_scope(b"Bearer " + made["one"].encode()), "publish")


def test_an_open_server_accepts_anybody_for_all_but_publish() -> None:
    access = Access(limits=LimitsConfig(anonymous=RateLimit(0.001, 2)))
    for address in ("192.0.2.1", "192.0.2.2"):
        for scope in ("device", "admin"):
            assert access(_scope(client=(address, 1)), scope)[:2] == Caller()[:2]
        with pytest.raises(TooManyError):
            access(_scope(client=(address, 2)), "device")
    with pytest.raises(AuthError, match="a server with tokens for the scope `publish`, got an open one"):
        access(_scope(), "publish")
    assert access.openapi_security("device") == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_address_needs_no_tokens(host: str) -> None:
    check_host(host, has_tokens=False, is_open=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "localhost.example", "pages.example"])
def test_an_address_that_others_reach_needs_tokens_or_open(host: str) -> None:
    with pytest.raises(OpenServerError, match="Expected `--tokens FILE` or `--user-keys FILE`, or `--open`"):
        check_host(host, has_tokens=False, is_open=False)
    check_host(host, has_tokens=True, is_open=False)
    check_host(host, has_tokens=False, is_open=True)
