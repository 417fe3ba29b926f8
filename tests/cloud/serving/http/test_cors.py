from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketrank.cloud.serving.access.tokens import issue_token
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.serving.http.cors import CorsConfig, CorsError, with_cors
from pocketrank.device.codec import to_json
from tests.cloud.serving.live import JSON, Live, live, request
from tests.cloud.small_published import small_run

APP = "https://app.example"
FAR_MS = 1 << 42


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens.json"


@pytest.fixture(scope="module")
def token(tokens: Path) -> str:
    return issue_token(tokens, ["device"], now_ms=0, lasts_ms=FAR_MS).token


@pytest.fixture(scope="module")
def server(tokens: Path, token: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("cors")
    config = ServingConfig(tokens=tokens, cors=CorsConfig((APP, "http://localhost:5173")))
    with live(small_run(folder / "run").folder, folder / "feedback.db", config=config) as running:
        yield running


def _ask(server: Live, origin: str, method: str = "POST", headers: str = "authorization, content-type") -> dict[str, str]:
    """Return the answer to a browser that asks for permission before it sends a request of a page."""
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    answer = server.send("OPTIONS", "/v1/page", headers=asked)
    return {**answer.headers, "status": str(answer.status)}


def test_a_browser_is_told_what_a_page_of_the_app_may_do_without_a_token(server: Live) -> None:
    for origin in (APP, "http://localhost:5173"):
        answer = _ask(server, origin)
        assert (answer["status"], answer["access-control-allow-origin"]) == ("200", origin)
        assert "authorization" in answer["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in answer


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://app.example", "https://app.example.evil.example", "null", ""]
)
def test_any_other_page_is_not_let_in(server: Live, origin: str) -> None:
    assert "access-control-allow-origin" not in _ask(server, origin)
    answer = server.send("GET", "/v1/bundle/manifest.json", headers={"Origin": origin})
    assert "access-control-allow-origin" not in answer.headers


def test_no_page_publishes(server: Live) -> None:
    assert _ask(server, APP, "PUT")["status"] == "400"


def test_a_page_is_shown_why_it_is_refused(server: Live) -> None:
    answer = server.send("GET", "/v1/bundle/manifest.json", headers={"Origin": APP})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (401, APP)
    assert "retry-after" in answer.headers["access-control-expose-headers"].lower()
    assert "origin" in answer.headers["vary"].lower()


def test_a_page_with_a_token_is_answered_and_may_read_what_it_needs(server: Live, token: str) -> None:
    answer = server.send("POST", "/v1/page", to_json(request()), {**JSON, "Origin": APP, "Authorization": f"Bearer {token}"})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, APP)
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
    other = server.send("POST", "/v1/page", to_json(request()), {**JSON, "Origin": "https://evil.example"})
    assert (other.status, "access-control-allow-origin" in other.headers) == (401, False)


@pytest.mark.parametrize("origin", ["*", "https://a.example", "http://127.0.0.1:8080", "https://[2001:db8::1]:8443"])
def test_an_origin_as_browsers_send_it_is_taken(origin: str) -> None:
    assert CorsConfig((origin,)).origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    ["", "app.example", "https://app.example/", "https://app.example/x", "https://u:p@app.example", "HTTPS://APP.example",
     "https://*.example", "file:///x", "https://app.example:port", "https://[1", "null"],
)  # fmt: skip
def test_any_other_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(CorsError, match="Expected an origin"):
        CorsConfig((origin,))


def test_without_origins_nothing_stands_before_the_app(tmp_path: Path) -> None:
    async def app(*_: object) -> None: ...

    assert with_cors(app, CorsConfig()) is app
