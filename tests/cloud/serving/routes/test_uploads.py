import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import msgspec
import pytest

from pocketrank.cloud.serving.access.limits import LimitsConfig, RateLimit, TokenScope
from pocketrank.cloud.serving.access.tokens import issue_token, revoke_token
from pocketrank.cloud.serving.bundles.publish import BundlePublish, BundleReceipt
from pocketrank.cloud.serving.bundles.store import BundleStoreConfig
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.device.codec import to_json, to_msgpack
from tests.cloud.serving.bundle_samples import FILES, digest, publish_of
from tests.cloud.serving.live import Answer, Live, live, until, write_bundle
from tests.cloud.small_published import small_run

NEW = {**FILES, "models/split.fp32.onnx": b"better" * 1000}
JSON = {"Content-Type": "application/json"}
_WAIT_S = 30
ANY_BUNDLE = BundleStoreConfig(unverified=True)


class Site:
    """A run with a token for each scope and some that are not let in, and servers over it."""

    def __init__(self, folder: Path) -> None:
        self.run = small_run(folder / "run").folder
        self.folder, self.tokens = self.run / "bundles", folder / "tokens.json"
        self.publish, self.device, self.admin = self.issue("publish"), self.issue("device"), self.issue("admin")
        self.other, self.revoked, self.expired = self.issue("publish"), self.issue("publish"), self.issue("publish", -1.0)

    @contextmanager
    def serving(
        self,
        *,
        limits: LimitsConfig | None = None,
        stall_s: float = 30.0,
        file_bytes_max: int = 0,
        name: str = "feedback",
        bundles: BundleStoreConfig = ANY_BUNDLE,
    ) -> Iterator[Live]:
        """A server with its feedback in a file of that name."""
        limits = limits or LimitsConfig(publish=None, device=None)
        config = ServingConfig(tokens=self.tokens, limits=limits, upload_stall_s=stall_s, bundles=bundles)
        with live(self.run, self.run / f"{name}.db", config=config, file_bytes_max=file_bytes_max) as server:
            yield server

    def issue(self, scope: TokenScope, lasts_s: float = 3600.0) -> dict[str, str]:
        now_ms = time.time_ns() // 1_000_000
        token = issue_token(self.tokens, [scope], now_ms=now_ms, lasts_ms=int(lasts_s * 1000)).token
        return {"Authorization": f"Bearer {token}"}

    def blob(self, server: Live, data: bytes, name: str | None = None, **headers: str) -> Answer:
        return server.send("PUT", f"/v1/bundle/blobs/{name or digest(data)}", data, {**self.publish, **headers})

    def commit(self, server: Live, publish: BundlePublish) -> Answer:
        return server.send("PUT", "/v1/bundle", to_json(publish), {**self.publish, **JSON})

    def upload(self, server: Live, files: dict[str, bytes], serial: int) -> None:
        for data in files.values():
            assert self.blob(server, data).status == 204
        answer = self.commit(server, publish_of(files, serial))
        assert answer.status == 200, answer

    def served(self, server: Live) -> dict[str, bytes]:
        answers = {path: server.send("GET", f"/v1/bundle/files/{path}", headers=self.device) for path in FILES}
        return {path: answer.body for path, answer in answers.items() if answer.status == 200}

    def incoming(self) -> list[str]:
        return os.listdir(self.folder / "incoming")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[Live]:
    limits = LimitsConfig(publish=None, device=None, publish_bytes=1 << 20)
    with site.serving(limits=limits, stall_s=0.5) as running:
        yield running


def _half(server: Live, site: Site, data: bytes, send: int) -> socket.socket:
    """A connection on which the first `send` bytes of a file were sent."""
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=_WAIT_S)
    head = f"PUT /v1/bundle/blobs/{digest(data)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    raw.sendall(f"{head}Authorization: {site.publish['Authorization']}\r\n\r\n".encode() + data[:send])
    return raw


def test_an_upload_from_the_first_question_to_the_last(server: Live, site: Site, tmp_path: Path) -> None:
    publish = publish_of(FILES, 10)
    answer = site.commit(server, publish)
    assert (answer.status, answer.headers["content-type"]) == (409, "application/json")
    body = answer.json()
    assert body["missing"] == sorted(digest(data) for data in FILES.values())
    assert (body["path"], body["got"]) == ("$.manifest.files", "2 that were not")
    with site.serving(name="second") as second:  # another process over the same store
        assert second.send("GET", "/v1/bundle/manifest.json", headers=site.device).status == 404
        for data in FILES.values():
            assert site.blob(server, data).status == 204
            assert site.blob(server, data).status == 204  # again
        answer = site.commit(server, publish)
        receipt = msgspec.json.decode(answer.body, type=BundleReceipt)
        assert receipt == BundleReceipt(serial=10, manifest_sha256=digest(publish.manifest), files=2, bytes=5002)
        assert site.served(server) == site.served(second) == FILES
        site.upload(second, NEW, 11)
        assert site.served(server) == site.served(second) == NEW
    packed = server.send(
        "PUT", "/v1/bundle", to_msgpack(publish_of(NEW, 11)), {**site.publish, "Content-Type": "application/msgpack"}
    )
    assert packed.status == 200
    old = site.commit(server, publish)
    assert (old.status, old.json()["path"], "missing" in old.json()) == (409, "$.manifest.serial", False)


def test_only_a_token_to_publish_uploads(server: Live, site: Site) -> None:
    revoke_token(site.tokens, site.revoked["Authorization"].split("_")[1], now_ms=1)
    wrong = {"Authorization": site.publish["Authorization"][:-4] + "0000"}
    data = b"not let in"
    until(lambda: server.send("PUT", "/v1/bundle", b"{", {**site.revoked, **JSON}).status == 401, "the revocation")
    for headers, status in (
        ({}, 401), (wrong, 401), (site.revoked, 401), (site.expired, 401), (site.device, 403), (site.admin, 403),
    ):  # fmt: skip
        for path, body, kind in (
            (f"/v1/bundle/blobs/{digest(data)}", data, "application/octet-stream"),
            ("/v1/bundle", to_json(publish_of(FILES, 99)), "application/json"),
        ):
            answer = server.send("PUT", path, body, {**headers, "Content-Type": kind})
            assert (answer.status, sorted(answer.json())) == (status, ["error", "expected", "got", "path"])
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert digest(data) not in os.listdir(site.folder / "blobs")


def test_a_server_without_tokens_takes_no_bundle(site: Site) -> None:
    with live(site.run, site.run / "open.db") as server:
        assert server.send("GET", "/v1/bundle/manifest.json").status == 404  # open, and nothing there
        for path in ("/v1/bundle", f"/v1/bundle/blobs/{digest(b'x')}"):
            assert server.send("PUT", path, b"x", JSON).status == 404
        assert not any("put" in methods for methods in server.send("GET", "/openapi.json").json()["paths"].values())


def test_a_file_that_is_not_as_announced_is_refused(server: Live, site: Site) -> None:
    answer = site.blob(server, b"one", digest(b"two"))
    assert (answer.status, answer.json()["expected"]) == (400, f"bytes with SHA-256 {digest(b'two')}")
    for name in ("x", "0" * 63, "A" * 64, "..%2f..%2ftokens.json", "%2e%2e", "0" * 64 + "%0a"):
        assert site.blob(server, b"one", name).status in (400, 404)
    assert site.blob(server, b"one", **{"Content-Type": "text/plain"}).status == 415
    assert site.blob(server, b"one", **{"Content-Encoding": "gzip"}).status == 415
    assert site.blob(server, b"x" * ((1 << 20) + 1)).status == 413
    connection = HTTPConnection("127.0.0.1", server.port, timeout=_WAIT_S)
    connection.request("PUT", f"/v1/bundle/blobs/{digest(b'one')}", iter([b"one"]), site.publish, encode_chunked=True)
    assert connection.getresponse().status == 411
    connection.close()
    answer = server.send("PUT", "/v1/bundle", b'{"manifest": "e30=", "more": 1}', {**site.publish, **JSON})
    assert (answer.status, "more" in answer.json()["error"]) == (400, True)
    assert server.send("PUT", "/v1/bundle", b"x" * (7 << 20), {**site.publish, **JSON}).status == 413
    assert site.incoming() == []


def test_a_client_that_leaves_or_stalls_leaves_nothing(server: Live, site: Site) -> None:
    data = os.urandom(1 << 20)
    with _half(server, site, data, 1 << 19):
        until(site.incoming, "a file on its way")
    until(lambda: not site.incoming(), "its removal")
    with _half(server, site, data, 1 << 19) as raw:
        assert raw.recv(64).startswith(b"HTTP/1.1 408 ")
    assert site.incoming() == []
    assert site.blob(server, data).status == 204
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        head = f"PUT /v1/bundle HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nAuthorization: {site.publish['Authorization']}"
        raw.sendall(f"{head}\r\n\r\nhalf".encode())
        assert raw.recv(64).startswith(b"HTTP/1.1 408 ")
    paths = server.send("GET", "/openapi.json").json()["paths"]
    assert all("408" in paths[path]["put"]["responses"] for path in ("/v1/bundle", "/v1/bundle/blobs/{sha256}"))


def test_a_server_killed_half_way_has_the_old_bundle(tmp_path: Path) -> None:
    site, data = Site(tmp_path), os.urandom(4 << 20)
    with site.serving() as server:
        site.upload(server, FILES, 1)
        with _half(server, site, data, 3 << 20):
            until(site.incoming, "a file on its way")
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(_WAIT_S)
    with site.serving() as server:
        assert site.served(server) == FILES
        assert digest(data) not in os.listdir(site.folder / "blobs")
        site.upload(server, NEW, 2)
        assert site.served(server) == NEW


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    site, large = Site(tmp_path), os.urandom(1 << 20)
    with site.serving(file_bytes_max=1 << 18) as server:
        site.upload(server, FILES, 1)
        answer = site.blob(server, large)
        assert (answer.status, answer.headers["retry-after"]) == (507, "60")
        assert str(tmp_path) not in answer.body.decode()
        assert site.incoming() == []
        # A record that is too large: the manifest is, because of its name.
        answer = site.commit(server, publish_of(FILES, 2, name="n" * (1 << 18)))
        assert answer.status == 507
        assert site.served(server) == FILES
        assert sorted(os.listdir(site.folder)) == ["blobs", "current.json", "incoming", "lock"]
    with site.serving() as server:
        assert site.served(server) == FILES
        assert site.blob(server, large).status == 204


def test_who_uploads_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with site.serving(limits=LimitsConfig(publish=RateLimit(0.001, 3))) as server:
        answers = [site.blob(server, b"%d" % n) for n in range(5)]
        assert [answer.status for answer in answers] == [204, 204, 204, 429, 429]
        assert 900 <= int(answers[-1].headers["retry-after"]) <= 1000
        assert server.send("PUT", f"/v1/bundle/blobs/{digest(b'0')}", b"0", site.other).status == 204


def test_an_admin_rolls_back_and_nobody_else(tmp_path: Path) -> None:
    site, other = Site(tmp_path), {"Authorization": "Bearer prk_" + "0" * 77}
    with site.serving() as server, site.serving(name="second") as second:

        def roll_back(headers: dict[str, str]) -> Answer:
            return second.send("POST", "/v1/bundle/rollback", b"", headers)

        assert roll_back(site.admin).status == 409  # nothing was uploaded
        site.upload(server, FILES, 1)
        site.upload(server, NEW, 2)
        assert [roll_back(headers).status for headers in ({}, other, site.publish, site.device)] == [401, 401, 403, 403]
        assert site.served(server) == site.served(second) == NEW
        answer = roll_back(site.admin)
        assert (answer.status, msgspec.json.decode(answer.body, type=BundleReceipt).serial) == (200, 1)
        assert site.served(server) == site.served(second) == FILES
        again = roll_back(site.admin)
        assert (again.status, again.json()["expected"]) == (409, "a bundle that was served before")


def test_the_first_upload_is_rolled_back_to_what_was_served_without_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    bundle = write_bundle(tmp_path / "bundle", FILES)
    config = ServingConfig(tokens=site.tokens, bundles=BundleStoreConfig(unverified=True))
    for folder, status in ((bundle, 200), (None, 204)):
        with live(site.run, site.run / "feedback.db", folder, config=config) as server:
            site.upload(server, NEW, 7)
            assert site.served(server) == NEW
            assert server.send("POST", "/v1/bundle/rollback", b"", site.admin).status == status
            assert site.served(server) == (FILES if folder else {})


def test_an_unsigned_bundle_is_refused_by_default(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with site.serving(bundles=BundleStoreConfig()) as server:
        for data in FILES.values():
            assert site.blob(server, data).status == 204
        answer = site.commit(server, publish_of(FILES, 1))
        assert (answer.status, answer.json()["path"]) == (403, "$.signatures")
        assert site.served(server) == {}
