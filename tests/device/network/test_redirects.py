"""Redirects of bundles, against real servers."""

import hashlib
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pocketrank.device.bundle.files import MANIFEST
from pocketrank.device.contract import FileEntry, PageRequest
from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import BadAnswerError, BadStatusError, UnreachableError

DATA = bytes(range(256)) * 8
ENTRY = FileEntry(path="m.onnx", bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
PATH, TEXT = f"/v1/bundle/files/{ENTRY.path}", f"/v1/bundle/{MANIFEST}"
OPENSSL = shutil.which("openssl")


@dataclass
class Site:
    """A server: what it answers by path, as bytes or a redirect, and what it was asked."""

    url: str = ""
    answers: dict[str, bytes | tuple[int, str]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)


@contextmanager
def site(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are two writes

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            state.connections.add(self.client_address)
            answer = state.answers.get(self.path, (404, ""))
            if isinstance(answer, bytes):
                start = int(self.headers.get("Range", "bytes=0-")[6:-1])
                self.send_response(206 if start else 200)
                self.send_header("Content-Range", f"bytes {start}-{len(answer) - 1}/{len(answer)}")
                body = answer[start:]
            else:
                self.send_response(answer[0])
                if answer[1]:
                    self.send_header("Location", answer[1])
                body = b"moved"
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/elsewhere?a=1", "../../elsewhere?a=1", "URL/elsewhere?a=1", "URL/elsewhere?a=1#part"])
def test_a_redirect_within_the_origin_keeps_token_and_connection(status: int, location: str) -> None:
    with site() as origin, CloudClient(origin.url, token="secret") as client:
        origin.answers = {TEXT: (status, location.replace("URL", origin.url)), "/elsewhere?a=1": b"text"}
        assert client.fetch(TEXT) == b"text"
        assert [(path, headers.get("authorization")) for path, headers in origin.asked] == [
            (TEXT, "Bearer secret"), ("/elsewhere?a=1", "Bearer secret"),
        ]  # fmt: skip
        assert len(origin.connections) == 1


@pytest.mark.parametrize("have", [0, 1000])
def test_a_file_at_another_origin_is_fetched_without_the_token(tmp_path: Path, have: int) -> None:
    (tmp_path / ENTRY.path).write_bytes(DATA[:have])
    with site() as origin, site() as other, CloudClient(origin.url, token="secret") as client:
        origin.answers = {PATH: (302, f"{other.url}/cdn")}
        other.answers = {"/cdn": DATA}
        client.fetch_file(ENTRY, tmp_path)
        (_, headers) = other.asked[0]
        assert "authorization" not in headers
        assert headers["host"] == other.url.removeprefix("http://")
        assert headers.get("range") == (f"bytes={have}-" if have else None)
        assert "if-range" not in headers, "the other server has tags of its own"
        assert ("if-range" in origin.asked[0][1]) == bool(have)
        # The connection to the origin still works.
        origin.answers[TEXT] = b"text"
        assert client.fetch(TEXT) == b"text"
        assert len(origin.connections) == 1
    assert (tmp_path / ENTRY.path).read_bytes() == DATA


def test_the_token_is_not_sent_again_behind_another_origin() -> None:
    with site() as origin, site() as other, CloudClient(origin.url, token="secret") as client:
        origin.answers = {TEXT: (302, f"{other.url}/cdn")}
        other.answers = {"/cdn": (302, "/here"), "/here": b"text"}
        assert client.fetch(TEXT) == b"text"
        assert all("authorization" not in headers for _, headers in other.asked)
        assert len(other.asked) == 2


@pytest.mark.parametrize(
    ("location", "status"),
    [(TEXT, 302), ("ftp://127.0.0.1/x", 302), ("file:///etc/hostname", 302), ("https:///x", 302), ("", 302), ("/x", 304)],
    ids=["endless", "ftp", "file", "no_host", "no_location", "no_redirect"],
)
def test_a_redirect_that_leads_nowhere_is_an_error_with_its_status(location: str, status: int) -> None:
    with site() as origin, CloudClient(origin.url) as client:
        origin.answers = {TEXT: (status, location)}
        with pytest.raises(BadStatusError) as caught:
            client.fetch(TEXT)
        assert caught.value.status == status
        assert len(origin.asked) == (6 if location == TEXT else 1)
        assert (location in caught.value.text) == (status == 302)


@pytest.mark.parametrize("location", ["/a b?c=d e", "/%61 b", "/Stra\xdfe", "/a|b<c>"])
def test_a_location_is_escaped_where_its_server_did_not(location: str) -> None:
    with site() as origin, CloudClient(origin.url) as client:
        escaped = quote(location, "/?=%", "latin-1")
        origin.answers = {TEXT: (302, location), escaped: b"text"}
        assert client.fetch(TEXT) == b"text"


@pytest.mark.parametrize("location", ["http://127.0.0.1:99999/", "http://127.0.0.1:port/", "http://[::1/", "/a b", "/\x7f"])
def test_a_location_that_is_no_url_is_a_bad_answer(location: str) -> None:
    with site() as origin, CloudClient(origin.url) as client:
        origin.answers = {TEXT: (302, location)}
        with pytest.raises((BadAnswerError, BadStatusError)):
            client.fetch(TEXT)


def test_a_redirect_of_what_is_sent_is_not_followed() -> None:
    with site() as origin, site() as other, CloudClient(origin.url) as client:
        origin.answers = {"/v1/page": (307, f"{other.url}/v1/page")}
        with pytest.raises(BadStatusError, match="a redirect that is not followed"):
            client.page(PageRequest(request_id="r", user_id=7, session_id="s", now_ms=0, size=3))
        assert other.asked == []


def _certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            OPENSSL or "", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "1", "-nodes",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(cert), "-keyout", str(key),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


@pytest.mark.skipif(OPENSSL is None, reason="no openssl here to make a certificate with")
def test_https_is_never_left_and_may_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, tls = _certificate(tmp_path)
    with site() as plain, site(tls) as secure:
        with pytest.raises(UnreachableError, match="certificate"), CloudClient(secure.url) as client:
            client.fetch(TEXT)
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        secure.answers = {TEXT: (302, f"{plain.url}{TEXT}"), "/inside": b"text", PATH: (302, "/inside")}
        plain.answers = {TEXT: b"read by everybody", PATH: (302, f"{secure.url}/inside"), "/back": (302, secure.url + TEXT)}
        with CloudClient(secure.url, token="secret") as client:
            assert client.fetch(PATH) == b"text"
            with pytest.raises(BadStatusError, match="a redirect that is not followed"):
                client.fetch(TEXT)
        assert plain.asked == []
        with CloudClient(plain.url, token="secret") as client:
            assert client.fetch(PATH) == b"text"
            with pytest.raises(BadStatusError, match="a redirect that is not followed"):  # to https and back
                client.fetch("/back")
        assert [path for path, _ in plain.asked] == [PATH, "/back"]
