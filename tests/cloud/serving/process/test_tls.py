import shutil
import socket
import ssl
import subprocess
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.serving.process.server import ServerConfig, TlsConfig, TlsError
from pocketrank.device.codec import from_json, to_json
from pocketrank.device.contract import Page
from tests.cloud.serving.live import JSON, live, request
from tests.cloud.small_published import small_run

OPENSSL = shutil.which("openssl")

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="no openssl here to make a certificate with")


def make_certificate(folder: Path, name: str = "one", *options: str) -> TlsConfig:
    """Make a self-signed certificate for 127.0.0.1."""
    folder.mkdir(exist_ok=True)
    made = TlsConfig(folder / f"{name}.pem", folder / f"{name}.key")
    subprocess.run(
        [
            OPENSSL or "", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "1",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
            "-out", str(made.certfile), "-keyout", str(made.keyfile), *(options or ("-nodes",)),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    made.keyfile.chmod(0o600)
    return made


@pytest.mark.parametrize("workers", [1, 2])
def test_only_clients_that_trust_the_certificate_are_answered(tmp_path: Path, workers: int) -> None:
    tls = make_certificate(tmp_path)
    config = ServingConfig(server=ServerConfig(tls), workers=workers)
    log = tmp_path / "log"
    with live(small_run(tmp_path / "run").folder, tmp_path / "feedback.db", config=config, stderr=log) as server:
        assert f"serving on https://127.0.0.1:{server.port}" in log.read_text()
        trusting = ssl.create_default_context(cafile=str(tls.certfile))
        connection = HTTPSConnection("127.0.0.1", server.port, timeout=30, context=trusting)
        connection.request("POST", "/v1/page", to_json(request()), JSON)
        assert from_json(connection.getresponse().read(), Page).request_id == "r"
        assert connection.sock.version() in ("TLSv1.2", "TLSv1.3")
        connection.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            HTTPSConnection("127.0.0.1", server.port, timeout=30, context=ssl.create_default_context()).connect()
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:  # nothing is answered in clear text
            raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/" not in raw.recv(64)
        server.process.terminate()
        assert server.process.wait(30) == 0


def test_a_certificate_without_a_key_is_refused_and_a_key_without_a_certificate(tmp_path: Path) -> None:
    certfile, keyfile = tmp_path / "one.pem", tmp_path / "one.key"
    assert TlsConfig.of(None, None) is None
    assert TlsConfig.of(certfile, keyfile) == TlsConfig(certfile, keyfile)
    for files, alone in (((certfile, None), certfile), ((None, keyfile), keyfile)):
        with pytest.raises(TlsError, match=r"Expected the certificate and its key, got a .* alone") as caught:
            TlsConfig.of(*files)
        assert caught.value.where == str(alone)


def test_an_invalid_file_is_named_before_the_start(tmp_path: Path) -> None:
    good, other, secret = (
        make_certificate(tmp_path),
        make_certificate(tmp_path, "two"),
        make_certificate(tmp_path, "three", "-passout", "pass:secret"),
    )
    (tmp_path / "text").write_text("no certificate")
    (tmp_path / "text").chmod(0o600)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "cut").write_text(good.certfile.read_text()[:200])
    nowhere = tmp_path / "nowhere"
    good.check()
    for certfile, keyfile, named, message in (
        (nowhere, good.keyfile, nowhere, "No such file"),
        (good.certfile, nowhere, nowhere, "No such file"),
        (tmp_path / "text", good.keyfile, tmp_path / "text", "a certificate in PEM"),
        (tmp_path / "bytes", good.keyfile, tmp_path / "bytes", "a certificate in PEM"),
        (tmp_path / "cut", good.keyfile, good.keyfile, "the key, without a password"),
        (good.certfile, tmp_path / "text", tmp_path / "text", "a private key in PEM"),
        (good.keyfile, good.certfile, good.keyfile, "a certificate in PEM"),
        (good.certfile, other.keyfile, other.keyfile, "KEY_VALUES_MISMATCH"),
        (secret.certfile, secret.keyfile, secret.keyfile, "a password"),
    ):
        with pytest.raises(TlsError, match=message) as caught:
            TlsConfig(certfile, keyfile).check()
        assert caught.value.where == str(named)
        assert str(named) in str(caught.value)


def test_a_server_with_an_invalid_certificate_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    good, text = make_certificate(tmp_path), tmp_path / "text"
    text.write_text("no certificate")
    with pytest.raises(TlsError, match="Expected a certificate in PEM") as caught:
        ServerConfig(TlsConfig(text, good.keyfile))
    assert caught.value.where == str(text)
    assert ServerConfig(good).tls == good


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    made.keyfile.chmod(0o644)
    with pytest.raises(TlsError, match="chmod 600"):
        made.check()
    made.keyfile.chmod(0o440)  # as Kubernetes mounts it
    made.check()
