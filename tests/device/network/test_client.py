"""Against real servers on the loopback interface, well-behaved and not."""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.reliability.loopback import LoopbackHandler, serve_loopback
from benchmarks.reliability.released import KEYS, Answer, make_files, serve
from pocketrank.device.bundle.files import (
    MANIFEST,
    SIGNATURES,
    BundleError,
    BundleStorageError,
    CorruptBundleError,
    SignatureError,
    UnsafePathError,
)
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import FeedbackBatch, FeedbackReceipt, FileEntry, PageRequest
from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import (
    BadAnswerError,
    BadStatusError,
    BadUrlError,
    ClientError,
    NoTokenError,
    UnreachableError,
)
from tests.device.worlds import make_bundle, make_event, make_page

REQUEST = PageRequest(request_id="r", user_id=7, session_id="s", now_ms=0, size=3)


class Cloud:
    """A small server of the contract. `answers` replaces the answer of a path by a status and a body."""

    def __init__(self, bundle: Path | None = None) -> None:
        self.bundle = bundle
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.connections: set[Any] = set()
        self.events: dict[str, int] = {}

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path in self.answers:
            return self.answers[path]
        if path == "/v1/page":
            request = from_msgpack(body, PageRequest)
            return 200, to_msgpack(make_page(list(range(request.size)), request_id=request.request_id))
        if path == "/v1/feedback":
            batch = from_msgpack(body, FeedbackBatch)
            new = {e.event_id: e.item_id for e in batch.events if e.event_id not in self.events}
            self.events |= new
            return 200, to_msgpack(FeedbackReceipt(accepted=len(new), duplicates=len(batch.events) - len(new)))
        if path == "/healthz":
            return 200, b'{"status": "ok"}'
        inside = path.removeprefix("/v1/bundle/").removeprefix("files/")
        if self.bundle is not None and (self.bundle / inside).is_file():
            return 200, (self.bundle / inside).read_bytes()
        return 404, b"nothing here"


@contextmanager
def serving(cloud: Cloud) -> Iterator[str]:
    class Handler(LoopbackHandler):
        def do_GET(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            cloud.seen.append((self.command, self.path, dict(self.headers)))
            cloud.connections.add(self.client_address)
            status, answer = cloud.handle(self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815

    with serve_loopback(Handler) as url:
        yield url


@contextmanager
def raw(*answers: bytes | None, hold: bool = False) -> Iterator[str]:
    """A server that reads one request a connection and sends the next of `answers`; with `hold` it stays connected."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def run() -> None:
        for answer in answers:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                if answer is not None:
                    connection.sendall(answer)
                if hold:
                    over.wait()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_pages_and_feedback_over_one_connection() -> None:
    cloud = Cloud()
    with serving(cloud) as url, CloudClient(url, token="secret") as client:
        page = client.page(REQUEST)
        assert page == make_page([0, 1, 2], request_id="r")
        events = [make_event(1), make_event(2)]
        assert client.send_feedback(events) == FeedbackReceipt(accepted=2, duplicates=0)
        assert client.send_feedback(events) == FeedbackReceipt(accepted=0, duplicates=2)
        assert client.health() == {"status": "ok"}
    assert len(cloud.connections) == 1
    method, path, headers = cloud.seen[0]
    assert (method, path) == ("POST", "/v1/page")
    assert headers["Content-Type"] == headers["Accept"] == "application/msgpack"
    assert headers["Authorization"] == "Bearer secret"


def test_a_prefix_in_the_base_url() -> None:
    cloud = Cloud()
    cloud.answers["/feed/healthz"] = 200, b"{}"
    with serving(cloud) as url, CloudClient(url + "/feed/") as client:
        assert client.health() == {}


def test_threads_take_turns() -> None:
    cloud, got = Cloud(), []
    with serving(cloud) as url, CloudClient(url) as client:

        def work(n: int) -> None:
            for i in range(10):
                request = msgspec.structs.replace(REQUEST, request_id=f"{n}/{i}", size=n)
                page = client.page(request)
                got.append(page.request_id == request.request_id and page.candidates.item_id.shape == (n,))

        threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == [True] * 30


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:80",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://h?x=1",
        "http://a b",
        "http://[::1",
    ],
)
def test_urls_that_no_call_can_be_made_to(url: str) -> None:
    with pytest.raises(BadUrlError):
        CloudClient(url)


def test_a_token_cannot_smuggle_a_header() -> None:
    with pytest.raises(BadUrlError, match="token"):
        CloudClient("http://host", token="a\r\nX-Evil: 1")


def test_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UnreachableError, match=f"POST http://127.0.0.1:{port}/v1/page"):
        CloudClient(f"http://127.0.0.1:{port}").page(REQUEST)


def test_no_such_host() -> None:
    with pytest.raises(UnreachableError):
        CloudClient("http://no-such-host.invalid").health()


def test_no_answer_in_time() -> None:
    with raw(None, hold=True) as url, pytest.raises(UnreachableError, match="timed out"):
        CloudClient(url, timeout_s=0.05).health()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(b"Retry-After: 30\r\n", 30.0), (b"", None), (b"Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n", None),
     (b"Retry-After: -1\r\n", None), (b"Retry-After: 99999999999\r\n", None)],
)  # fmt: skip
def test_the_wait_that_a_server_asks_for(header: bytes, seconds: float | None) -> None:
    with raw(b"HTTP/1.1 503 Busy\r\n" + header + b"Content-Length: 0\r\n\r\n") as url, CloudClient(url) as client:
        with pytest.raises(BadStatusError) as caught:
            client.page(REQUEST)
        assert caught.value.retry_after_s == seconds


@pytest.mark.parametrize("status", [204, 301, 400, 401, 404, 500, 503])
def test_other_statuses(status: int) -> None:
    cloud = Cloud()
    cloud.answers["/v1/page"] = status, b"" if status == 204 else b"because \xff"
    with serving(cloud) as url, CloudClient(url) as client:
        with pytest.raises(BadStatusError) as caught:
            client.page(REQUEST)
        assert caught.value.status == status
        assert caught.value.text in ("", "because \N{REPLACEMENT CHARACTER}")
        # The connection still works.
        assert client.health() == {"status": "ok"}


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", to_msgpack(make_page([1]))[:-3], to_msgpack(FeedbackReceipt(accepted=1, duplicates=0))],
    ids=["empty", "html", "cut", "other_struct"],
)
def test_garbage_for_a_page(body: bytes) -> None:
    cloud = Cloud()
    cloud.answers["/v1/page"] = 200, body
    with serving(cloud) as url, CloudClient(url) as client, pytest.raises(BadAnswerError, match=r"POST .*/v1/page"):
        client.page(REQUEST)


def test_a_page_with_a_bad_block_is_left_to_the_session() -> None:
    page = make_page([1, 2])
    vector = msgspec.structs.replace(page.candidates.item_id, data=b"short")
    broken = msgspec.structs.replace(page, candidates=msgspec.structs.replace(page.candidates, vector=vector))
    cloud = Cloud()
    cloud.answers["/v1/page"] = 200, to_msgpack(broken)
    with serving(cloud) as url, CloudClient(url) as client:
        assert client.page(REQUEST) == broken


@pytest.mark.parametrize("body", [b"[1]", b"ok", b"\xff"])
def test_garbage_for_health(body: bytes) -> None:
    cloud = Cloud()
    cloud.answers["/healthz"] = 200, body
    with serving(cloud) as url, CloudClient(url) as client, pytest.raises(BadAnswerError):
        client.health()


def test_an_answer_without_end_is_refused() -> None:
    cloud = Cloud()
    cloud.answers["/healthz"] = 200, bytes((16 << 20) + 1)
    with serving(cloud) as url, CloudClient(url) as client:
        with pytest.raises(BadAnswerError, match="at most 16777216 bytes"):
            client.health()
        assert client.page(REQUEST).request_id == "r"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"SSH-2.0-nothing like HTTP\r\n", BadAnswerError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", UnreachableError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", (BadAnswerError, UnreachableError)),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", BadAnswerError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", BadAnswerError),
        (None, UnreachableError),
    ],
    ids=["not_http", "cut", "bad_chunk", "headers", "long_header", "disconnect"],
)
def test_answers_that_are_not_http(answer: bytes | None, error: Any) -> None:
    with raw(answer) as url, pytest.raises(error):
        CloudClient(url).health()


def test_a_connection_that_the_server_closed_meanwhile_is_opened_again() -> None:
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    with raw(body, body) as url, CloudClient(url) as client:
        assert client.health() == {}
        assert client.health() == {}


def test_a_bundle_is_installed_whole(tmp_path: Path) -> None:
    source = make_bundle(tmp_path / "source")
    cloud, target = Cloud(source.folder), tmp_path / "device" / "current"
    with serving(cloud) as url, CloudClient(url) as client:
        bundle = client.download_bundle(target)
        assert bundle.folder == target
        assert bundle.manifest == source.manifest
        assert bundle.stages("split", "onnx")["whole"].read_bytes() == source.stages("split", "onnx")["whole"].read_bytes()
        calls = len(cloud.seen)
        assert client.download_bundle(target).manifest == source.manifest
        assert [path for _, path, _ in cloud.seen[calls:]] == [f"/v1/bundle/{MANIFEST}"]
        make_bundle(tmp_path / "source", seed=5)
        newer = client.download_bundle(target)
        assert newer.manifest != source.manifest
        assert newer.stages("split", "onnx")["whole"].read_bytes() == (source.folder / "models" / "split.onnx").read_bytes()
    assert [p.name for p in target.parent.iterdir()] == ["current"]


def _spoil_digest(cloud: Cloud, manifest: Any) -> None:
    cloud.answers["/v1/bundle/files/models/split.onnx"] = 200, bytes(manifest.files[1].bytes)


def _spoil_long(cloud: Cloud, manifest: Any) -> None:
    cloud.answers["/v1/bundle/files/models/split.onnx"] = 200, bytes(manifest.files[1].bytes + 1)


def _spoil_missing(cloud: Cloud, manifest: Any) -> None:
    cloud.answers["/v1/bundle/files/models/split.onnx"] = 404, b"gone"


def _spoil_path(cloud: Cloud, manifest: Any) -> None:
    files = (msgspec.structs.replace(manifest.files[0], path="../../evil"),)
    cloud.answers[f"/v1/bundle/{MANIFEST}"] = 200, msgspec.json.encode(msgspec.structs.replace(manifest, files=files))


def _spoil_size(cloud: Cloud, manifest: Any) -> None:
    files = (msgspec.structs.replace(manifest.files[0], bytes=1 << 40),)
    cloud.answers[f"/v1/bundle/{MANIFEST}"] = 200, msgspec.json.encode(msgspec.structs.replace(manifest, files=files))


def _spoil_manifest(cloud: Cloud, manifest: Any) -> None:
    cloud.answers[f"/v1/bundle/{MANIFEST}"] = 200, b"{}"


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (_spoil_digest, CorruptBundleError),
        (_spoil_long, BadAnswerError),
        (_spoil_missing, BadStatusError),
        (_spoil_path, UnsafePathError),
        (_spoil_size, CorruptBundleError),
        (_spoil_manifest, BadAnswerError),
    ],
)
def test_a_bundle_that_fails_leaves_the_old_one(
    spoil: Callable[[Cloud, Any], None], error: type[Exception], tmp_path: Path
) -> None:
    source, installed = make_bundle(tmp_path / "source", seed=1), make_bundle(tmp_path / "device" / "current")
    cloud = Cloud(source.folder)
    spoil(cloud, source.manifest)
    before = sorted(p for p in tmp_path.rglob("*"))
    with serving(cloud) as url, CloudClient(url) as client, pytest.raises(error):
        client.download_bundle(installed.folder)
    assert sorted(p for p in tmp_path.rglob("*")) == before
    assert type(installed).open(installed.folder).manifest == installed.manifest


def test_a_folder_that_is_no_bundle_is_replaced(tmp_path: Path) -> None:
    source = make_bundle(tmp_path / "source")
    (tmp_path / "current").mkdir()
    (tmp_path / "current" / MANIFEST).write_text("{}")
    with pytest.raises(BundleError):
        type(source).open(tmp_path / "current")
    with serving(Cloud(source.folder)) as url, CloudClient(url) as client:
        assert client.download_bundle(tmp_path / "current").manifest == source.manifest


# ------------------------------------------------------------------------------------------------- files that go on


DATA = bytes(range(256)) * 8
ENTRY = FileEntry(path="models/m.onnx", bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
PATH = f"files/{ENTRY.path}"


@pytest.mark.parametrize("have", [0, 1, 1000, len(DATA) - 1, len(DATA)])
def test_a_file_resumes_where_it_was_interrupted(tmp_path: Path, have: int) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / ENTRY.path).write_bytes(DATA[:have])
    with serve() as server, CloudClient(server.url) as client:
        server.files = {PATH: DATA}
        client.fetch_file(ENTRY, tmp_path)
        client.fetch_file(ENTRY, tmp_path)
    assert (tmp_path / ENTRY.path).read_bytes() == DATA
    expected = {0: [(PATH, "")], len(DATA): []}.get(have, [(PATH, f"bytes={have}-")])
    assert server.asked == expected


@pytest.mark.parametrize("have", [b"x", bytes(1000), bytes(len(DATA)), bytes(5000)], ids=len)
def test_bytes_that_cannot_be_its_beginning_are_discarded(tmp_path: Path, have: bytes) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / ENTRY.path).write_bytes(have)
    with serve() as server, CloudClient(server.url) as client:
        server.files = {PATH: DATA}
        client.fetch_file(ENTRY, tmp_path)
    assert (tmp_path / ENTRY.path).read_bytes() == DATA


@pytest.mark.parametrize(
    ("answer", "error", "left"),
    [
        (Answer.whole(DATA[:500], Content_Length=str(len(DATA))), UnreachableError, 500),
        (Answer([DATA[:500]]), BadAnswerError, 500),
        (Answer.whole(DATA + b"x"), BadAnswerError, 100),
        (Answer([DATA, DATA]), BadAnswerError, None),
        (Answer.whole(DATA[100:], 206, Content_Range="bytes 99-2046/2048"), BadAnswerError, 100),
        (Answer.whole(DATA[100:], 206, Content_Range="bytes 100-2047/9999"), BadAnswerError, 100),
        (Answer.whole(b"no", 416), BadStatusError, 0),
        (Answer.whole(b"no", 503), BadStatusError, 100),
        (Answer.whole(bytes(len(DATA))), CorruptBundleError, 0),
    ],
    ids=["cut", "short", "long", "endless", "another_range", "another_size", "beyond_the_end", "unavailable", "another_file"],
)
def test_a_bad_answer_leaves_what_may_be_its_beginning(
    tmp_path: Path, answer: Answer, error: type[Exception], left: int | None
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / ENTRY.path).write_bytes(DATA[:100])
    with serve() as server, CloudClient(server.url) as client:
        server.files = {PATH: answer}
        with pytest.raises(error):
            client.fetch_file(ENTRY, tmp_path)
        size = (tmp_path / ENTRY.path).stat().st_size
        assert left is None or size == left
        assert size <= ENTRY.bytes
        server.files = {PATH: DATA}
        client.fetch_file(ENTRY, tmp_path)
    assert (tmp_path / ENTRY.path).read_bytes() == DATA


def _range(start: int, end: int, total: str = "2048", unit: str = "bytes", status: int = 206) -> bytes:
    """An answer with the bytes from `start` to before `end`."""
    head = f"HTTP/1.1 {status} x\r\nContent-Range: {unit} {start}-{end - 1}/{total}\r\nContent-Length: {end - start}\r\n\r\n"
    return head.encode() + DATA[start:end]


@pytest.mark.parametrize(
    "answers",
    [
        [_range(100, 2048, "*")],
        [_range(100, 2048, unit="Bytes")],
        [_range(100, 101), _range(101, 2000), _range(2000, 2048)],
        [_range(100, 1000, "*"), _range(1000, 2048, "2048")],
        [_range(100, 1000), b"HTTP/1.1 200 OK\r\nContent-Length: 2048\r\n\r\n" + DATA],
        [_range(100, 1000), _range(1000, 2048).replace(b"Content-Length: 1048", b"Connection: close")],
    ],
    ids=["unknown_total", "unit_in_capitals", "pieces", "pieces_of_unknown_total", "a_piece_then_all", "no_length"],
)
def test_a_range_may_be_shorter_than_the_rest_and_of_an_unknown_total(tmp_path: Path, answers: list[bytes]) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / ENTRY.path).write_bytes(DATA[:100])
    with raw(*answers) as url, CloudClient(url) as client:
        client.fetch_file(ENTRY, tmp_path)
    assert (tmp_path / ENTRY.path).read_bytes() == DATA


@pytest.mark.parametrize(
    "answer",
    [
        _range(99, 2048, "*"),
        _range(101, 2048, "*"),
        _range(100, 2049, "*"),
        _range(100, 2048, "2047"),
        _range(100, 1000).replace(b"Length: 900", b"Length: 901") + b"x",
        _range(100, 1000).replace(b"Length: 900", b"Length: 0"),
        _range(100, 100),
        _range(100, 2048, unit="items"),
        b"HTTP/1.1 206 x\r\nContent-Length: 1948\r\n\r\n" + DATA[100:],
    ],
    ids=["before", "behind", "beyond", "another_total", "longer", "nothing", "empty", "unit", "no_range"],
)
def test_the_whole_file_is_asked_for_after_a_range_that_does_not_begin_the_rest(tmp_path: Path, answer: bytes) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / ENTRY.path).write_bytes(DATA[:100])
    with raw(answer, answer) as url, CloudClient(url, timeout_s=0.5) as client, pytest.raises(ClientError):
        client.fetch_file(ENTRY, tmp_path)
    left = (tmp_path / ENTRY.path).read_bytes()
    assert DATA.startswith(left)
    assert len(left) >= 100
    with raw(answer, _range(0, 2048, status=200)) as url, CloudClient(url) as client:
        client.fetch_file(ENTRY, tmp_path)
    assert (tmp_path / ENTRY.path).read_bytes() == DATA


def test_a_range_that_nobody_asked_for_may_be_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with raw(_range(0, 2048)) as url, CloudClient(url) as client:
        client.fetch_file(ENTRY, tmp_path)
    assert (tmp_path / ENTRY.path).read_bytes() == DATA


def _informational(status: int) -> bytes:
    return f"HTTP/1.1 {status} x\r\nLink: </x>; rel=preload\r\n\r\n".encode()


@pytest.mark.parametrize("before", [(100,), (102,), (103,), (199,), (100, 103), (103, 103, 100), (103,) * 19])
def test_informational_answers_are_read_past(before: tuple[int, ...]) -> None:
    answer = b"".join(map(_informational, before)) + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    with raw(answer) as url, CloudClient(url) as client:
        assert client.health() == {}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (_informational(103) * 1000, BadAnswerError),
        (_informational(103), UnreachableError),
        (_informational(101), BadStatusError),
        (_informational(103) + b"SSH-2.0-nothing", BadAnswerError),
    ],
    ids=["endless", "alone", "another_protocol", "garbage"],
)
def test_informational_answers_without_an_answer_are_an_error(answer: bytes, error: type[Exception]) -> None:
    with raw(answer) as url, CloudClient(url) as client, pytest.raises(error):
        client.health()


@pytest.mark.parametrize("where", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_a_server_that_drips_is_given_up_in_time(where: bytes) -> None:
    with serve() as server, CloudClient(server.url, timeout_s=0.1) as client:
        server.files = {PATH: Answer([where, *[b"x"] * 900], raw=True, pause_s=0.01)}
        with pytest.raises(UnreachableError, match="timed out"):
            client.fetch(f"/v1/bundle/{PATH}")


def test_a_disk_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"a file where a folder should be")
    with serve() as server, CloudClient(server.url) as client:
        server.files = {PATH: DATA}
        with pytest.raises(BundleStorageError):
            client.fetch_file(ENTRY, tmp_path)


def test_files_beyond_the_limit_are_not_begun(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "bundle").manifest
    with serve() as server, CloudClient(server.url) as client, pytest.raises(CorruptBundleError, match="at most 10 bytes"):
        client.fetch_files(manifest, tmp_path / "device", bytes_max=10)
    assert server.asked == []


def test_a_signed_bundle_can_be_asked_for(tmp_path: Path) -> None:
    with serve() as server, CloudClient(server.url) as client:
        server.files = {**make_files(3)}
        assert client.download_bundle(tmp_path / "current", KEYS).manifest.serial == 3
        assert client.download_bundle(tmp_path / "current", KEYS).manifest.serial == 3
        server.files[SIGNATURES] = make_files(4)[SIGNATURES]
        with pytest.raises(SignatureError):
            client.download_bundle(tmp_path / "elsewhere", KEYS)
        assert not (tmp_path / "elsewhere").exists()


class Tokens:
    """A server that accepts one token at a time, and an app that gets the current one."""

    def __init__(self) -> None:
        self.valid, self.given = "t1", 0

    def __call__(self) -> str:
        self.given += 1
        return self.valid

    def cloud(self, bundle: Path | None = None) -> Cloud:
        tokens = self

        class Guarded(Cloud):
            def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
                right = self.seen[-1][2].get("Authorization") == f"Bearer {tokens.valid}"
                return super().handle(path, body) if right else (401, b"another token")

        return Guarded(bundle)


def test_a_token_that_expired_is_renewed_once_and_the_call_made_again() -> None:
    tokens = Tokens()
    cloud = tokens.cloud()
    with serving(cloud) as url, CloudClient(url, tokens) as client:
        assert tokens.given == 0
        assert client.page(REQUEST).request_id == "r"
        assert client.health() == {"status": "ok"}
        assert tokens.given == 1  # it is kept
        tokens.valid = "t2"
        assert client.send_feedback([make_event(1)]).accepted == 1
        assert (tokens.given, len(cloud.events), len(cloud.connections)) == (2, 1, 1)
        assert [head.get("Authorization") for _, _, head in cloud.seen] == ["Bearer t1", "Bearer t1", "Bearer t1", "Bearer t2"]


def test_a_server_that_refuses_every_token_is_asked_twice() -> None:
    tokens = Tokens()
    with serving(Cloud()) as url, CloudClient(url, lambda: tokens()) as client:
        assert client.page(REQUEST).request_id == "r"
    cloud = tokens.cloud()
    with serving(cloud) as url, CloudClient(url, lambda: f"not {tokens()}".replace(" ", "-")) as client:
        for _ in range(2):
            with pytest.raises(BadStatusError, match="401"):
                client.page(REQUEST)
        assert (len(cloud.seen), tokens.given) == (4, 4)
    for token in ("fixed", None):
        cloud = tokens.cloud()
        with serving(cloud) as url, CloudClient(url, token) as client, pytest.raises(BadStatusError, match="401"):
            client.page(REQUEST)
        assert len(cloud.seen) == 1


@pytest.mark.parametrize(
    "made", ["", "two words", "line\r\nX-Evil: 1", "ключ", None, 5, ConnectionError("down"), KeyError("x")]
)
def test_an_app_without_a_token_is_an_error_of_the_call(made: object) -> None:
    def token() -> str:
        if isinstance(made, Exception):
            raise made
        return made  # type: ignore[return-value]

    cloud = Cloud()
    with serving(cloud) as url, CloudClient(url, token) as client:
        for _ in range(2):  # and the app is asked again
            with pytest.raises(NoTokenError, match="Expected a token"):
                client.page(REQUEST)
    assert cloud.seen == []


def test_a_download_goes_on_with_a_fresh_token(tmp_path: Path) -> None:
    tokens = Tokens()
    make_bundle(tmp_path / "there")
    cloud = tokens.cloud(tmp_path / "there")
    with serving(cloud) as url, CloudClient(url, tokens) as client:
        client.health()
        tokens.valid = "t2"
        assert client.download_bundle(tmp_path / "here").manifest.files
        assert tokens.given == 2
