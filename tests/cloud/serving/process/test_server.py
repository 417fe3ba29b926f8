import socket
import ssl
import subprocess
import sys
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from pocketrank.cloud.serving.process.server import PortError, ServerConfig, listen
from pocketrank.cloud.serving.process.tls import TlsConfig, TlsError


def test_a_free_port_is_had_and_then_no_longer_free() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortError, match=f"Expected a free port to listen on, got 127.0.0.1:{port}"):
            listen("127.0.0.1", port)
        socket.create_connection(first.getsockname(), timeout=10).close()
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("no such host", 0), ("127.0.0.1", 1 << 17), ("", -1)])
def test_an_address_that_is_not_this_machines_is_refused(host: str, port: int) -> None:
    with pytest.raises(PortError, match="Expected"):
        listen(host, port)


def _certificate(folder: Path) -> tuple[Path, Path]:
    """One for localhost, signed by itself."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run([*new, *subject, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


@pytest.mark.parametrize("shared", [False, True])
def test_tls_is_served_alone_and_on_a_shared_socket(tmp_path: Path, shared: bool) -> None:
    cert, key = _certificate(tmp_path)
    code = f"""
from pathlib import Path
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from pocketrank.cloud.serving.process.server import ServerConfig, listen, print_serving, run_server, url_of
from pocketrank.cloud.serving.process.tls import TlsConfig
async def hello(_):
    return PlainTextResponse("hello")
sock = listen("127.0.0.1", 0)
if {shared}:
    print_serving(url_of(sock, tls=True))
config = ServerConfig(TlsConfig(Path({str(cert)!r}), Path({str(key)!r})))
run_server(Starlette(routes=[Route("/", hello)]), sock, config, heartbeat=(lambda: None) if {shared} else None)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Serving on https://127.0.0.1:")
        port = int(line.rsplit(":", 1)[1])
        with pytest.raises(ssl.SSLError):  # nobody vouches for it
            HTTPSConnection("127.0.0.1", port, timeout=30, context=ssl.create_default_context()).request("GET", "/")
        connection = HTTPSConnection("127.0.0.1", port, timeout=30, context=ssl.create_default_context(cafile=str(cert)))
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"hello"
        connection.close()
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_certificate_that_cannot_be_used_is_known_before_anything_is_loaded(tmp_path: Path) -> None:
    cert, key = _certificate(tmp_path)
    (tmp_path / "text").write_text("no certificate")
    with pytest.raises(TlsError, match="Expected a certificate in PEM") as caught:
        ServerConfig(TlsConfig(tmp_path / "text", key))
    assert caught.value.where == tmp_path / "text"
    assert ServerConfig(TlsConfig(cert, key)).tls == TlsConfig(cert, key)
