import gzip
import http.client
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.device.codec import from_json, from_msgpack, read_page, to_json, to_msgpack
from pocketrank.device.contract import NO_FEEDBACK, FeedbackBatch, FeedbackReceipt, Page, PageRequest, TelemetryReport
from tests.cloud.events import event
from tests.cloud.serving.live import JSON, MSGPACK, Live, command, live, piped, request, write_bundle
from tests.cloud.small_published import SPLIT_VERSION, small_run

FILES = {"spec.json": b"{}", "models/split.fp32.onnx": b"model" * 1000}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    small_run(folder / "run")
    bundle = write_bundle(folder / "bundle", FILES)
    (bundle / "secret").write_bytes(b"secret")
    config = piped(folder / "pipeline", "[limits]\nqueue_ms = 10_000\n")  # no request is shed beside other tests
    with live(folder / "run", folder / "feedback.db", bundle, config=config) as running:
        yield running


def test_a_page_over_messagepack_and_over_json_is_the_same(server: Live) -> None:
    page = server.ask("/v1/page", request(3), Page)
    read_page(page)
    answer = server.send("POST", "/v1/page", to_json(request(3)), JSON)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    other = from_json(answer.body, Page)
    assert read_page(other).item_id.tolist() == read_page(page).item_id.tolist()
    assert other.candidates == page.candidates
    assert other.user_vector == page.user_vector


def test_the_order_is_that_of_the_runs_task_weights(server: Live) -> None:
    page = read_page(server.ask("/v1/page", request(3, 30), Page))
    fused, category = page.floats[:, 0] + 3 * page.floats[:, 1], page.categories[:, 0]
    assert fused.argmax() == 0
    for code in np.unique(category):  # a page is spread over categories, each of which keeps its order
        assert (np.diff(fused[category == code]) <= 0).all()


def test_content_type_and_accept_are_two_things(server: Live) -> None:
    mine = "application/json; charset=utf-8"
    answer = server.send("POST", "/v1/page", to_json(request()), {"Content-Type": mine, "Accept": "application/msgpack"})
    assert from_msgpack(answer.body, Page).request_id == "r"
    answer = server.send("POST", "/v1/page", to_msgpack(request()), {**MSGPACK, "Accept": "application/json"})
    assert from_json(answer.body, Page).request_id == "r"
    for headers in ({}, {"Accept": "*/*"}):  # as curl sends
        answer = server.send("POST", "/v1/page", to_msgpack(request()), headers)
        assert (answer.headers["content-type"], from_json(answer.body, Page).request_id) == ("application/json", "r")


def test_feedback_is_counted_once_and_moves_the_next_page(server: Live) -> None:
    first = read_page(server.ask("/v1/page", request(4), Page)).item_id.tolist()
    batch = FeedbackBatch(events=tuple(event(4, item) for item in first[:3]))
    assert server.ask("/v1/feedback", batch, FeedbackReceipt) == FeedbackReceipt(accepted=3, duplicates=0)
    answer = server.send("POST", "/v1/feedback", to_json(batch), JSON)
    assert from_json(answer.body, FeedbackReceipt) == FeedbackReceipt(accepted=0, duplicates=3)
    page = server.ask("/v1/page", request(4, feedback=batch.events), Page)
    assert set(read_page(page).item_id.tolist()).isdisjoint(first[:3])


def test_an_unknown_split_version_gets_a_page_without_vectors(server: Live) -> None:
    page = server.ask("/v1/page", request(split_version="0ld"), Page)
    assert page.candidates.vector is None
    assert page.split_reason == "unknown split version 0ld"


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/v1/page", b"", "$"),
        ("/v1/page", b"\xc1", "$"),
        ("/v1/page", b"\x93\x01\x02", "$"),
        ("/v1/page", to_msgpack(request())[:-3], "$"),
        ("/v1/page", msgspec.msgpack.encode({"user_id": 1}), "$.request_id"),
        ("/v1/page", msgspec.msgpack.encode({**msgspec.to_builtins(request()), "user_id": "one"}), "$.user_id"),
        ("/v1/page", msgspec.msgpack.encode({**msgspec.to_builtins(request()), "version": 99}), "$.version"),
        ("/v1/page", to_msgpack(request(size=0)), "$.size"),
        ("/v1/page", to_msgpack(request(size=101)), "$.size"),
        ("/v1/feedback", msgspec.msgpack.encode({"events": [{}]}), "$.events[0].event_id"),
        ("/v1/feedback", b"[" * 100_000, "$"),
    ],
)
def test_a_body_against_the_contract_is_400_and_says_where(server: Live, path: str, body: bytes, where: str) -> None:
    answer = server.send("POST", path, body, MSGPACK)
    assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
    error = answer.json()
    assert sorted(error) == ["error", "expected", "got", "path"]
    assert error["path"] == where
    assert error["expected"] in error["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"events": 1}', b"[" * 100_000, b'{"events": [], "version": 7}'])
def test_wrong_json_is_400(server: Live, body: bytes) -> None:
    answer = server.send("POST", "/v1/feedback", body, JSON)
    assert (answer.status, sorted(answer.json())) == (400, ["error", "expected", "got", "path"])


@pytest.mark.parametrize(
    ("headers", "where"),
    [
        ({"Content-Type": "text/plain"}, "content-type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "content-type"),
        ({**MSGPACK, "Content-Encoding": "br"}, "content-encoding"),
    ],
)
def test_another_content_type_is_415(server: Live, headers: dict[str, str], where: str) -> None:
    answer = server.send("POST", "/v1/page", gzip.compress(to_msgpack(request())), headers)
    assert (answer.status, answer.json()["path"]) == (415, where)


def test_a_body_past_the_limit_is_413_said_or_not(server: Live) -> None:
    assert server.send("POST", "/v1/feedback", b"x" * ((1 << 20) + 1), MSGPACK).status == 413
    # Refused on its word alone: not a byte of it is sent.
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(b"POST /v1/page HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert raw.recv(64).startswith(b"HTTP/1.1 413 ")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/v1/page", iter([b"x" * (1 << 18)] * 5), MSGPACK, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_client_that_leaves_in_the_middle_harms_nobody(server: Live) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(b"POST /v1/page HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nhalf")
    assert server.ask("/v1/page", request(), Page).request_id == "r"


def test_what_is_no_http_is_400(server: Live) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(b"\x16\x03\x01\x00nonsense\r\n\r\n")
        assert raw.recv(64).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/page", 405), ("POST", "/nowhere", 404)])
def test_no_route_is_told_like_every_other_error(server: Live, method: str, path: str, status: int) -> None:
    answer = server.send(method, path)
    assert (answer.status, sorted(answer.json())) == (status, ["error", "expected", "got", "path"])


def test_the_bundle_can_be_downloaded_and_checked(server: Live) -> None:
    manifest = server.send("GET", "/v1/bundle/manifest.json").json()
    for entry in manifest["files"]:
        answer = server.send("GET", f"/v1/bundle/files/{entry['path']}")
        assert answer.status == 200
        assert (len(answer.body), sha256(answer.body).hexdigest()) == (entry["bytes"], entry["sha256"])
        tag = answer.headers["etag"]
        for tags, status in (
            (tag, 304), (f"W/{tag}", 304), (f'"another", {tag}', 304), ("*", 304), ('"another"', 200), ("", 200),
            (f"x{tag}", 200),
        ):  # fmt: skip
            again = server.send("GET", f"/v1/bundle/files/{entry['path']}", headers={"If-None-Match": tags})
            assert (again.status, again.body) == (status, b"" if status == 304 else answer.body)


def test_every_route_that_answers_get_answers_head(server: Live) -> None:
    paths = server.send("GET", "/openapi.json").json()["paths"]
    answered = [path.replace("{path}", "models/split.fp32.onnx") for path, methods in paths.items() if "get" in methods]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for path in [*answered, "/openapi.json", "/docs", "/nowhere"]:
        both = {}
        for method in ("HEAD", "GET"):  # on one connection: a body behind a HEAD would be read as the next answer
            connection.request(method, path)
            response = connection.getresponse()
            both[method] = response.status, {name: response.getheader(name) for name in ("content-type", "etag", "allow")}
            length, body = int(response.headers["content-length"]), response.read()
            assert body == b"" if method == "HEAD" else len(body) == length
        assert both["HEAD"] == both["GET"]
    connection.close()
    assert server.send("HEAD", "/v1/bundle/files/models/split.fp32.onnx").headers["content-length"] == "5000"
    assert server.send("HEAD", "/v1/page").status == 405
    assert server.metric('pocketrank_requests_total{method="HEAD",route="/livez",status="200"}') == 1


def test_a_body_may_be_compressed_under_either_name(server: Live) -> None:
    for name in ("gzip", "x-gzip", "X-GZIP"):
        answer = server.send("POST", "/v1/page", gzip.compress(to_msgpack(request())), {**MSGPACK, "Content-Encoding": name})
        assert from_msgpack(answer.body, Page).request_id == "r"


def test_accept_may_come_in_several_lines(server: Live) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", "/v1/page")
    body = to_msgpack(request())
    for name, value in (
        ("Content-Length", str(len(body))), ("Accept", "application/msgpack;q=0.9"), ("Accept", "Application/JSON;q=0.1"),
    ):  # fmt: skip
        connection.putheader(name, value)
    connection.endheaders(body)
    assert connection.getresponse().getheader("content-type") == "application/msgpack"
    connection.close()


def test_a_download_can_go_on_from_any_byte(server: Live) -> None:
    path = "/v1/bundle/files/" + server.send("GET", "/v1/bundle/manifest.json").json()["files"][1]["path"]
    whole = server.send("GET", path)
    tag, size = whole.headers["etag"], len(whole.body)
    for start in (0, 1, size - 1):
        for condition in ({}, {"If-Range": tag}):
            part = server.send("GET", path, headers={"Range": f"bytes={start}-", **condition})
            assert (part.status, part.body, part.headers["etag"]) == (206, whole.body[start:], tag)
            assert part.headers["content-range"] == f"bytes {start}-{size - 1}/{size}"
    beyond = server.send("GET", path, headers={"Range": f"bytes={size}-"})
    assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    for asked, start, end in (("bytes=-1", size - 1, size), ("bytes=0-1", 0, 2), ("bytes=0-,2-", 0, size)):
        part = server.send("GET", path, headers={"Range": asked})
        assert (part.status, part.body) == (206, whole.body[start:end])
    assert server.send("GET", path, headers={"Range": f"bytes={'9' * 40}-"}).status == 416
    for asked in ("lines=0-", "bytes=", "bytes=2-1", "bytes=x-", "nothing", "bytes=\u0661-"):  # RFC 9110 says to ignore them
        ignored = server.send("GET", path, headers={"Range": asked.encode("utf-8").decode("latin-1")})
        assert (ignored.status, ignored.body) == (200, whole.body)
    changed = server.send("GET", path, headers={"Range": "bytes=1-", "If-Range": '"another"'})
    assert (changed.status, changed.body) == (200, whole.body)


@pytest.mark.parametrize("name", ["manifest.sig", "release.json"])
def test_a_bundle_that_is_not_signed_or_released_is_told_so(server: Live, name: str) -> None:
    assert server.send("GET", f"/v1/bundle/{name}").status == 404


@pytest.mark.parametrize(
    "path", ["secret", "../run/run.json", "..%2frun%2frun.json", "%2e%2e/run/run.json", "/etc/hostname", "models", "", "a%00b"]
)
def test_no_other_file_can_be(server: Live, path: str) -> None:
    answer = server.send("GET", f"/v1/bundle/files/{path}")
    assert (answer.status, sorted(answer.json())) == (404, ["error", "expected", "got", "path"])


def test_it_lives_and_is_ready(server: Live) -> None:
    assert server.send("GET", "/livez").json() == {"status": "ok"}
    answer = server.send("GET", "/readyz")
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    assert answer.json() == {
        "status": "ready",
        "checks": {"feedback_log": "ok", "feedback_records": "ok", "event_log": "ok", "store": "ok", "stages": "ok"},
    }


def test_health_says_what_is_served(server: Live) -> None:
    health = server.send("GET", "/healthz").json()
    assert health == {
        "status": "ok",
        "run": "run",
        "split_version": SPLIT_VERSION,
        "split_versions": [SPLIT_VERSION],
        "items": 60,
        "users": 8,
        "parameters": 0,
        "own_ids": [],
        "simulated": True,
        "bundle": True,
        "feedback_replayed": 0,
        "threads": health["threads"],
    }


def test_metrics_count_what_happens(server: Live) -> None:
    samples = {
        'pocketrank_requests_total{method="POST",route="/v1/page",status="200"}': 1,
        'pocketrank_requests_total{method="POST",route="other",status="404"}': 1,
        'pocketrank_request_seconds_count{route="/v1/page"}': 1,
        'pocketrank_stage_seconds_count{route="/v1/page",stage="rank"}': 1,
        'pocketrank_stage_seconds_count{route="/v1/page",stage="encode"}': 1,
        'pocketrank_candidates_sum{stage="returned"}': 10,
        'pocketrank_feedback_events_total{result="accepted"}': 2,
        'pocketrank_feedback_events_total{result="duplicate"}': 1,
        'pocketrank_pages_without_vectors_total{reason="not_asked"}': 1,
        'pocketrank_pages_without_vectors_total{reason="unknown"}': 0,
    }
    before = {name: server.metric(name) for name in samples}
    one, two = event(5), event(5)
    server.ask("/v1/page", request(split_version=None, feedback=(one,)), Page)
    server.ask("/v1/feedback", FeedbackBatch(events=(one, two)), FeedbackReceipt)
    server.send("POST", "/wp-login.php")
    assert {name: server.metric(name) - before[name] for name in samples} == samples


def test_telemetry_is_counted_once_and_a_bad_report_loses_no_feedback(server: Live) -> None:
    def send(telemetry: object, user_id: int) -> FeedbackReceipt:
        body = {"events": [msgspec.to_builtins(event(user_id))], "telemetry": telemetry}
        return from_msgpack(server.send("POST", "/v1/feedback", msgspec.msgpack.encode(body), MSGPACK).body, FeedbackReceipt)

    report = TelemetryReport(report_id="r", since_ms=0, until_ms=1, counters={"reranks": 3})
    assert send(msgspec.to_builtins(report), 6).accepted == 1
    server.ask("/v1/page", request(6, telemetry=report), Page)
    for bad in ({"report_id": "x", "counters": {"reranks": -1}}, 5, [[]]):
        assert send(bad, 6).accepted == 1
    assert server.metric('pocketrank_device_counts_total{name="reranks"}') == 3
    labels = 'bundle="",result="{}",sample_rate="",tier=""'
    assert server.metric(f"pocketrank_device_reports_total{{{labels.format('duplicate')}}}") == 1
    assert server.metric(f"pocketrank_device_reports_total{{{labels.format('bad')}}}") == 3


def test_the_routes_are_documented(server: Live) -> None:
    document = server.send("GET", "/openapi.json").json()
    bundle = {f"/v1/bundle/{name}" for name in ("manifest.json", "manifest.sig", "release.json", "files/{path}")}
    assert bundle | {"/v1/page", "/v1/feedback", "/livez", "/readyz", "/healthz", "/metrics", "/drift"} == set(
        document["paths"]
    )
    for path in ("/v1/page", "/v1/feedback"):
        operation = document["paths"][path]["post"]
        assert set(operation["requestBody"]["content"]) == {"application/msgpack", "application/json"}
        assert {"200", "400", "401", "403", "408", "413", "415", "429", "503"} == set(operation["responses"])
        assert "security" not in operation  # it has no tokens
    schemas = document["components"]["schemas"]
    assert set(PageRequest.__struct_fields__) == set(schemas["PageRequest"]["properties"])
    page = server.send("GET", "/docs")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert all(path in page.body.decode() for path in document["paths"])
    references = {part.split('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:]}
    assert references <= set(schemas)


def test_many_at_once_get_their_own_pages(server: Live) -> None:
    def one(n: int) -> str:
        return server.ask("/v1/page", request(n % 9, request_id=str(n), feedback=(event(n % 9),)), Page).request_id

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(100))) == [str(n) for n in range(100)]


def test_acknowledged_feedback_survives_kill_9_once(tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    db = tmp_path / "feedback.db"
    batch = FeedbackBatch(events=tuple(event(2, 1000 + 3 * i, ms=i, watch_ms=20_000) for i in range(8)))
    config = piped(tmp_path, "[limits]\npage_ms = 60_000\n")  # pages are whole however busy the machine is
    with live(tmp_path / "run", db, config=config) as server:
        assert server.ask("/v1/feedback", batch, FeedbackReceipt).accepted == 8
        before = server.ask("/v1/page", request(2, 20, feedback=(event(2, 1030),)), Page)
        server.process.send_signal(signal.SIGKILL)
        assert server.process.wait(30) == -signal.SIGKILL
    with live(tmp_path / "run", db, config=config) as server:
        assert server.send("GET", "/healthz").json()["feedback_replayed"] == 9
        after = server.ask("/v1/page", request(2, 20), Page)
        assert after.candidates == before.candidates
        assert after.user_vector == before.user_vector
        assert server.ask("/v1/feedback", batch, FeedbackReceipt) == FeedbackReceipt(accepted=0, duplicates=8)
        server.process.terminate()
        server.process.wait(30)
    log = SqliteFeedbackLog(db)
    assert [e.item_id for e in log.replay()] == [*range(1000, 1024, 3), 1030]
    log.close()
    assert not db.with_name("feedback.db-wal").exists()  # an orderly end folds it in


def test_a_full_log_is_503_nothing_counts_and_pages_go_on(tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    with live(tmp_path / "run", tmp_path / "feedback.db", bytes_max=64 * 1024) as server:
        first = read_page(server.ask("/v1/page", request(2), Page)).item_id.tolist()
        many = tuple(event(2, item, session_id="x" * 2000) for item in first * 10)
        answer = server.send("POST", "/v1/feedback", to_msgpack(FeedbackBatch(events=many)), MSGPACK)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert str(tmp_path) not in answer.body.decode()
        page = server.ask("/v1/page", request(2, feedback=many), Page)
        assert page.degraded == (NO_FEEDBACK,)
        assert read_page(page).item_id.tolist() == first
        assert server.metric('pocketrank_degraded_total{reason="no_feedback"}') == 1
        assert read_page(server.ask("/v1/page", request(2), Page)).item_id.tolist() == first
        assert server.ask("/v1/feedback", FeedbackBatch(events=many[:1]), FeedbackReceipt).accepted == 1


def test_an_event_that_is_refused_stops_no_page_and_no_other_event(server: Live) -> None:
    good, bad = event(5), event(5, event_id="")
    page = server.ask("/v1/page", request(5, feedback=(bad, good)), Page)
    assert page.degraded == ()
    receipt = server.ask("/v1/feedback", FeedbackBatch(events=(good, bad, event(5))), FeedbackReceipt)
    assert (receipt.accepted, receipt.duplicates, [refused.index for refused in receipt.refused]) == (1, 1, [1])
    assert server.metric('pocketrank_feedback_events_total{result="refused"}') == 2


def test_without_a_bundle_its_routes_are_404(tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    with live(tmp_path / "run", tmp_path / "feedback.db") as server:
        for path in ("/v1/bundle/manifest.json", "/v1/bundle/files/spec.json"):
            answer = server.send("GET", path)
            assert (answer.status, answer.json()["got"]) == (404, "one without")


def test_a_port_in_use_is_a_typed_error(server: Live, tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    args = command(tmp_path / "run", tmp_path / "feedback.db", port=server.port)
    result = subprocess.run(args, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert (
        f"pocketrank.cloud.serving.process.server.PortError: Expected a free port to listen on, got 127.0.0.1:{server.port}"
        in result.stderr
    )
    assert not (tmp_path / "feedback.db").exists()


def test_actions_that_the_run_does_not_know_are_kept_and_counted(tmp_path: Path) -> None:
    run, db = small_run(tmp_path / "run", actions=("purchase",)).folder, tmp_path / "feedback.db"
    actions = [("purchase",), ("gift", "purchase"), ("gift", "subscribe")]
    config = piped(tmp_path, "[limits]\npage_ms = 60_000\n")  # pages are whole however busy the machine is
    with live(run, db, config=config) as server:
        batch = FeedbackBatch(events=tuple(event(1, actions=names) for names in actions))
        assert server.ask("/v1/feedback", batch, FeedbackReceipt).accepted == 3
        bad = FeedbackBatch(events=(event(1, actions=("like",)), event(1, actions=("gift", "gift")), event(1)))
        receipt = server.ask("/v1/feedback", bad, FeedbackReceipt)
        assert (receipt.accepted, [one.index for one in receipt.refused]) == (1, [0, 1])
        assert "a name like `purchase` that is no field" in receipt.refused[0].reason
        assert server.metric("pocketrank_feedback_unknown_actions_total") == 3
        assert server.ask("/v1/page", request(1), Page).degraded == ()
    with closing(SqliteFeedbackLog(db)) as log:
        assert [one.actions or () for one in log.replay()] == [*actions, ()]
