import shutil
import socket
import ssl
import subprocess
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.serving.process.server import ServerConfig
from pocketrank.cloud.serving.process.tls import TlsConfig, TlsError
from pocketrank.device.codec import from_json, to_json
from pocketrank.device.contract import Page
from tests.cloud.serving.live import JSON, live, request
from tests.cloud.small_published import small_run

OPENSSL = shutil.which("openssl")

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="no openssl here to make a certificate with")


def _make(folder: Path, name: str = "one", *options: str) -> TlsConfig:
    """A certificate that vouches for itself, of 127.0.0.1."""
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
def test_a_server_with_a_certificate_answers_who_trusts_it_and_nobody_else(tmp_path: Path, workers: int) -> None:
    tls = _make(tmp_path)
    config = ServingConfig(server=ServerConfig(tls), workers=workers)
    with live(small_run(tmp_path / "run").folder, tmp_path / "feedback.db", config=config) as server:
        trusting = ssl.create_default_context(cafile=str(tls.certfile))
        connection = HTTPSConnection("127.0.0.1", server.port, timeout=30, context=trusting)
        connection.request("POST", "/v1/page", to_json(request()), JSON)
        assert from_json(connection.getresponse().read(), Page).request_id == "r"
        assert connection.sock.version() in ("TLSv1.2", "TLSv1.3")
        connection.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            HTTPSConnection("127.0.0.1", server.port, timeout=30, context=ssl.create_default_context()).connect()
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:  # nothing in clear
            raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/" not in raw.recv(64)


def test_one_file_without_the_other_is_refused(tmp_path: Path) -> None:
    certfile, keyfile = tmp_path / "one.pem", tmp_path / "one.key"
    assert TlsConfig.of(None, None) is None
    assert TlsConfig.of(certfile, keyfile) == TlsConfig(certfile, keyfile)
    for files, alone in (((certfile, None), certfile), ((None, keyfile), keyfile)):
        with pytest.raises(TlsError, match=r"Expected the certificate and its key, got a .* alone") as caught:
            TlsConfig.of(*files)
        assert caught.value.where == alone


def test_a_file_that_cannot_be_used_is_named_before_the_start(tmp_path: Path) -> None:
    good, other, secret = _make(tmp_path), _make(tmp_path, "two"), _make(tmp_path, "three", "-passout", "pass:secret")
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
        assert caught.value.where == named
        assert str(named) in str(caught.value)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    made = _make(tmp_path)
    made.keyfile.chmod(0o644)
    with pytest.raises(TlsError, match="chmod 600"):
        made.check()
    made.keyfile.chmod(0o440)  # as Kubernetes mounts it
    made.check()
