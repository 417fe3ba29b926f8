"""The page `docs/own-cloud.md`: its server as a process, and the SDK as it is against it."""

import json
import re
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pocketrank.device import CloudClient, DeviceStore, FeedSession, Ranker, Uploader
from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.codec import from_json, read_page
from pocketrank.device.contract import FeedbackEvent, PageRequest
from pocketrank.device.network.errors import BadStatusError
from pocketrank.sdk_demo.emulator.fleet import Visit, run_fleet
from pocketrank.sdk_demo.emulator.policies import OnDevice
from pocketrank.sdk_demo.world import World
from tests.device.worlds import T0, make_bundle, make_event
from tests.sdk_demo.world.worlds import small
from tests.test_docs import blocks

PAGE = Path(__file__).parents[2] / "docs" / "own-cloud.md"
APP, SESSION, BUNDLE, *REST = (block.code for block in blocks(PAGE.read_text(), "python"))


@contextmanager
def started(folder: Path, app: str) -> Iterator[str]:
    """The server `app`, a process in `folder`; the value is its URL."""
    (folder / "own_cloud.py").write_text(app)
    command = [sys.executable, "-m", "uvicorn", "own_cloud:app", "--port", "0", "--no-access-log"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if url := re.search(r"running on (http://[\d.:]+)", line):
                yield url[1]
                break
        else:
            pytest.fail("".join(lines))
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    make_bundle(folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with started(folder, APP + BUNDLE) as url:
        yield url


@pytest.fixture
def cloud(url: str) -> Iterator[CloudClient]:
    with CloudClient(url, timeout_s=30) as cloud:
        yield cloud


def stored(folder: Path) -> list[FeedbackEvent]:
    with sqlite3.connect(folder / "feedback.db") as log:
        return [from_json(event, FeedbackEvent) for (event,) in log.execute("SELECT event FROM events")]


def request(**changes: Any) -> PageRequest:
    fields = {"request_id": "r-1", "user_id": 7, "session_id": "s-1", "now_ms": T0, "size": 8}
    return PageRequest(**(fields | changes))


def post(url: str, body: object) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Post JSON as curl does, without `Accept`."""
    sent = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(sent, timeout=30) as response:
            return response.status, json.load(response), dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers)


def test_the_session_of_the_docs_runs_against_the_server_of_the_docs(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert SESSION.count("http://127.0.0.1:8080") == 1
    namespace: dict[str, Any] = {"__name__": "docs"}
    exec(compile(SESSION.replace("http://127.0.0.1:8080", url), str(PAGE), "exec"), namespace)
    assert [event.position for event in stored(folder) if event.session_id == "7-1"] == [0, 1, 2, 3, 4]


def test_the_other_blocks_run() -> None:
    namespace: dict[str, Any] = {"__name__": "docs"}
    for code in REST:
        exec(compile(code, str(PAGE), "exec"), namespace)
    assert len(REST) == 2


def test_the_server_is_short() -> None:
    """Thirty lines without the imports, comments and empty lines."""
    lines = [line for line in APP.splitlines() if line.strip() and not line.strip().startswith(("#", "import ", "from "))]
    assert len(lines) <= 30


def test_the_model_on_the_device_changes_the_order_of_the_page(cloud: CloudClient, folder: Path) -> None:
    ranker = Ranker.open(Bundle.open(folder / "bundle"))
    with FeedSession(ranker, user_id=8, session_id="8-1", clock=lambda: T0) as session:
        page = cloud.page(session.request(8))
        session.take(page)
        sent = read_page(page).item_id.tolist()
        shown = []
        for position in range(8):
            item = session.next()
            assert item is not None
            shown.append(item)
            session.feedback(make_event(item, position, user_id=8, session_id="8-1", like=position % 2 == 0))
        assert sorted(shown) == sorted(sent)
        assert shown != sent
        again = cloud.page(session.request(200))
    assert not set(read_page(again).item_id.tolist()) & set(sent), "a page repeats what the session has shown"


def test_the_uploader_and_the_store_of_the_device_work_with_it(cloud: CloudClient, folder: Path, tmp_path: Path) -> None:
    with DeviceStore(tmp_path / "device.db") as store:
        events = [make_event(i, i, user_id=9, session_id="9-1") for i in range(5)]
        for event in events:
            store.outbox.add(event)
        uploader = Uploader(store.outbox, cloud.send_feedback)
        uploader.step()
        assert (uploader.counters.batches, uploader.counters.events, uploader.counters.refused) == (1, 5, 0)
    assert {event.event_id for event in stored(folder) if event.user_id == 9} == {event.event_id for event in events}


def test_an_emulated_phone_swipes_through_its_pages(url: str, folder: Path) -> None:
    """The world has the items 1 to 1,000 of the server."""
    world = World(small(users=5, items=1000), seed=0)
    policies = [OnDevice(Bundle.open(folder / "bundle"))]
    (record,) = run_fleet(url, world, [Visit(user_id=3, sessions=1)], policies, clients=1, seed=0, run_id="own")
    assert record.requests >= 1
    assert (record.pages_missing, record.uploads_missing) == (0, 0)
    assert record.counters.reranks >= 1
    events = [event for event in stored(folder) if event.experiment == "own/on_device"]
    assert [event.position for event in events] == list(range(len(record.effective)))


def test_an_event_is_kept_once_however_it_comes(cloud: CloudClient, folder: Path) -> None:
    event = make_event(3, 0, user_id=10, session_id="10-1")
    page = cloud.page(request(user_id=10, feedback=(event,)))
    assert page.degraded == ()
    receipt = cloud.send_feedback([event, make_event(4, 1, user_id=10, session_id="10-1")])
    assert (receipt.accepted, receipt.duplicates, receipt.refused) == (1, 1, ())
    assert len([event for event in stored(folder) if event.user_id == 10]) == 2
    assert cloud.send_feedback([]).accepted == 0


def test_devices_install_its_bundle(cloud: CloudClient, folder: Path, tmp_path: Path) -> None:
    bundle = cloud.download_bundle(tmp_path / "bundle")
    assert bundle.manifest == Bundle.open(folder / "bundle").manifest
    assert Ranker.open(bundle).split_version == bundle.manifest.split_version


def test_people_read_it_with_curl(url: str) -> None:
    body = {"request_id": "r-1", "user_id": 7, "session_id": "s-1", "now_ms": T0, "size": 3}
    status, page, headers = post(f"{url}/v1/page", body)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert len(page["candidates"]["item_id"]["data"]) == 3
    assert page["candidates"]["floats"]["names"] == ["pxtr_like", "pxtr_long_view", "duration_ms"]


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/v1/page", {"request_id": "r"}, {"path": "$.user_id", "expected": "a value", "got": "nothing"}),
        (
            "/v1/page",
            {"request_id": "r", "user_id": 7, "session_id": "s", "now_ms": T0, "size": 0},
            {"path": "$.size", "expected": "1 to 500 candidates", "got": "0"},
        ),
        ("/v1/feedback", {"version": 2, "events": []}, {"path": "$.version", "expected": "version 1", "got": "version 2"}),
    ],
)
def test_a_wrong_request_is_answered_as_by_our_server(url: str, path: str, body: object, error: dict[str, str]) -> None:
    status, answer, headers = post(url + path, body)
    assert (status, headers["content-type"]) == (400, "application/json")
    assert {name: answer[name] for name in error} == error
    assert answer["error"] == f"Expected {error['expected']}, got {error['got']} - at `{error['path']}`"


def test_the_sdk_sees_the_status_of_an_error(cloud: CloudClient) -> None:
    with pytest.raises(BadStatusError, match=r"\$\.size") as refused:
        cloud.page(request(size=501))
    assert refused.value.refuses_body


def test_a_store_that_fails_loses_no_page_and_no_event(tmp_path: Path) -> None:
    event = make_event(3, 0, user_id=11, session_id="11-1")
    with started(tmp_path, APP) as url, CloudClient(url, timeout_s=30) as cloud:
        with sqlite3.connect(tmp_path / "feedback.db") as log:
            log.execute("DROP TABLE events")
        page = cloud.page(request(user_id=11, feedback=(event,)))
        assert page.degraded == ("no_feedback",)
        assert len(read_page(page).item_id) == 8
        with pytest.raises(BadStatusError, match="503") as failed:
            cloud.send_feedback([event])
        assert (failed.value.refuses_body, failed.value.retry_after_s) == (False, 1.0)
