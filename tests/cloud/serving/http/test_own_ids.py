"""A team's own ids over HTTP: texts in both directions, and whole numbers of any language."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.device.codec import from_json, from_msgpack, read_page, to_msgpack
from pocketrank.device.contract import FeedbackBatch, Page, id_code
from tests.cloud.events import event
from tests.cloud.id_dictionaries import small_run_with_texts
from tests.cloud.serving.live import JSON, MSGPACK, Answer, Live, live, piped, request
from tests.cloud.small_published import small_run

LARGE = 2**53 + 1
NINETEEN = 1_234_567_890_123_456_789
TIME = "[limits]\npage_ms = 60_000.0\nqueue_ms = 60_000.0\n"
"""No page is late because the machine has other things to do."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of a run whose ids are texts."""
    folder = tmp_path_factory.mktemp("texts")
    run = small_run_with_texts(folder / "run").folder
    with live(run, folder / "feedback.db", config=piped(folder / "pipeline", TIME)) as server:
        yield server


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of a run whose ids are whole numbers, some of which no float holds."""
    folder = tmp_path_factory.mktemp("numbers")
    run = small_run(folder / "run")
    item_id, user_id = run.published.item_id.copy(), run.published.user_id.copy()
    item_id[-3:], user_id[-2:] = [LARGE, NINETEEN, 2**63 - 1], [LARGE, NINETEEN]
    replace(run, published=replace(run.published, item_id=item_id, user_id=user_id)).save()
    with live(run.folder, folder / "feedback.db", config=piped(folder / "pipeline", TIME)) as server:
        yield server


def post(server: Live, path: str, struct: msgspec.Struct, **changes: Any) -> Answer:
    """Send a struct as JSON, some of its fields changed."""
    body = msgspec.to_builtins(struct) | changes
    return server.send("POST", path, json.dumps(body).encode(), JSON)


def page(server: Live, **changes: Any) -> Any:
    answer = post(server, "/v1/page", request(), **changes)
    assert answer.status == 200, answer.body
    return answer.json()


def seen(item: Any, user: Any, **more: Any) -> dict[str, Any]:
    """An event with these ids, as JSON has it."""
    return {**msgspec.to_builtins(event(**more)), "item_id": item, "user_id": user}


def feedback(server: Live, *events: dict[str, Any], **more: Any) -> Any:
    answer = post(server, "/v1/feedback", FeedbackBatch(events=()), events=events, **more)
    assert answer.status == 200, answer.body
    return {name: answer.json()[name] for name in ("accepted", "duplicates", "refused")}


def test_json_has_the_teams_own_ids_both_ways(texts: Live) -> None:
    first = page(texts, user_id="user-3", size=20)["candidates"]["item_id"]
    items = first["data"]
    assert first == {"dtype": "text", "shape": [20], "data": items}
    assert set(items) <= {f"item-{number}" for number in range(60)}
    others = page(texts, user_id="user-3", size=20, exclude=[*items[:5], "item-that-nobody-knows"])["candidates"]["item_id"][
        "data"
    ]
    assert not set(items[:5]) & set(others)
    code = read_page(texts.ask("/v1/page", request(id_code("user-3"), 20), Page)).item_id.tolist()
    assert code == [id_code(item) for item in items], "it is the same page as that of the code"


def test_feedback_of_ids_that_the_run_does_not_know(texts: Live) -> None:
    item = page(texts, user_id="somebody new")["candidates"]["item_id"]["data"][0]
    events = [seen(item, "somebody new"), seen("a new item", "somebody new")]
    assert feedback(texts, *events) == {"accepted": 2, "duplicates": 0, "refused": []}
    assert feedback(texts, *events) == {"accepted": 0, "duplicates": 2, "refused": []}
    assert item not in page(texts, user_id="somebody new")["candidates"]["item_id"]["data"]
    along = seen(page(texts, user_id="somebody new")["candidates"]["item_id"]["data"][0], "somebody new")
    after = page(texts, user_id="somebody new", feedback=[along])
    assert along["item_id"] not in after["candidates"]["item_id"]["data"]
    assert after["degraded"] == []
    # A phone knows the code alone, and has the same user.
    assert id_code(item) not in read_page(texts.ask("/v1/page", request(id_code("somebody new"), 60), Page)).item_id


def test_messagepack_has_codes_and_texts_where_asked(texts: Live) -> None:
    plain = texts.ask("/v1/page", request(id_code("user-3")), Page)
    assert plain.candidates.item_key is msgspec.UNSET
    keyed = texts.ask("/v1/page", request(id_code("user-3"), own_ids=True), Page)
    assert read_page(keyed).item_id.tolist() == read_page(plain).item_id.tolist()
    assert [id_code(key) for key in keyed.candidates.item_key or ()] == read_page(plain).item_id.tolist()
    # Texts are own ids here, too.
    body = msgspec.to_builtins(request()) | {"user_id": "user-3", "exclude": [(keyed.candidates.item_key or ())[0], 7]}
    answer = texts.send("POST", "/v1/page", msgspec.msgpack.encode(body), MSGPACK)
    assert read_page(from_msgpack(answer.body, Page)).item_id[0] == read_page(plain).item_id[1]
    batch = msgspec.to_builtins(FeedbackBatch(events=(event(),))) | {"events": [seen("item-1", "by messagepack")]}
    answer = texts.send("POST", "/v1/feedback", msgspec.msgpack.encode(batch), MSGPACK)
    assert msgspec.msgpack.decode(answer.body)["accepted"] == 1


def test_json_may_ask_for_codes(texts: Live) -> None:
    body = page(texts, user_id=id_code("user-3"), own_ids=False)
    coded = from_json(json.dumps(body).encode(), Page)
    assert (
        read_page(coded).item_id.tolist() == read_page(texts.ask("/v1/page", request(id_code("user-3")), Page)).item_id.tolist()
    )
    item = int(read_page(coded).item_id[0])
    assert feedback(texts, seen(item, id_code("by code")), own_ids=False)["accepted"] == 1
    assert page(texts, user_id="by code", exclude=[])["candidates"]["item_id"]["data"].count(item) == 0


def test_whole_numbers_in_json_are_own_ids(texts: Live) -> None:
    """A team whose ids have 65 bits or begin with zeros may also have some that look like numbers."""
    item = page(texts, user_id=4711)["candidates"]["item_id"]["data"][0]
    assert feedback(texts, seen(item, 4711))["accepted"] == 1
    assert item not in page(texts, user_id="4711")["candidates"]["item_id"]["data"]


def test_the_encoding_of_the_answer_decides(texts: Live) -> None:
    body = json.dumps(msgspec.to_builtins(request()) | {"user_id": "user-3"}).encode()
    answer = texts.send("POST", "/v1/page", body, {**JSON, "Accept": "application/msgpack"})
    assert from_msgpack(answer.body, Page).candidates.item_key is msgspec.UNSET
    answer = texts.send("POST", "/v1/page", to_msgpack(request(id_code("user-3"))), {**MSGPACK, "Accept": "application/json"})
    assert answer.json()["candidates"]["item_id"]["dtype"] == "text"


def test_what_grew_survives_kill_9(tmp_path: Path) -> None:
    run, db, config = (
        small_run_with_texts(tmp_path / "run").folder,
        tmp_path / "feedback.db",
        piped(tmp_path / "pipeline", TIME),
    )
    with live(run, db, config=config) as server:
        items = page(server, user_id="new")["candidates"]["item_id"]["data"]
        assert feedback(server, *(seen(item, "new") for item in items[:3]), seen("new item", "new"))["accepted"] == 4
        server.process.kill()
        server.process.wait()
    with live(run, db, config=config) as server:
        assert not set(items[:3]) & set(page(server, user_id="new")["candidates"]["item_id"]["data"])
    with closing(SqliteFeedbackLog(db)) as log:
        logged = [(one.user_id, one.item_id) for one in log.replay()]
    assert logged[-1] == (id_code("new"), id_code("new item"))


def test_a_full_disk_refuses_feedback_of_new_ids_and_no_page(tmp_path: Path) -> None:
    run = small_run_with_texts(tmp_path / "run").folder
    config = piped(tmp_path / "pipeline", TIME)
    with live(run, tmp_path / "feedback.db", bytes_max=64 << 10, config=config) as server:
        events = [seen(f"{'x' * 200}{number}", "new") for number in range(1000)]
        answer = post(server, "/v1/feedback", FeedbackBatch(events=()), events=events)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        got = page(server, user_id="user-3", feedback=events[:900])
        assert (got["degraded"], got["candidates"]["item_id"]["shape"]) == (["no_feedback"], [10])


def test_whole_numbers_are_exact_from_any_language(numbers: Live) -> None:
    """JavaScript has no integer beyond 2^53, so it sends texts, and asks for texts."""
    want = {str(LARGE), str(NINETEEN), str(2**63 - 1)}
    got = page(numbers, user_id=str(NINETEEN), size=60, own_ids=True)["candidates"]["item_id"]
    assert got["dtype"] == "text"
    assert want <= set(got["data"])
    plain = page(numbers, user_id=NINETEEN, size=60)["candidates"]["item_id"]
    assert (plain["dtype"], list(map(str, plain["data"]))) == ("i8", got["data"])
    packed = numbers.ask("/v1/page", request(NINETEEN, 60, own_ids=True), Page)
    assert list(packed.candidates.item_key or ()) == got["data"]
    assert read_page(packed).item_id.tolist() == plain["data"]
    for user, items in ((str(LARGE), [str(LARGE), str(NINETEEN)]), (LARGE, [2**63 - 1])):
        assert feedback(numbers, *(seen(item, user) for item in items))["accepted"] == len(items)
    left = read_page(numbers.ask("/v1/page", request(LARGE, 60), Page)).item_id
    assert not np.isin([LARGE, NINETEEN, 2**63 - 1], left).any()
    assert 1000 in left


def test_excluded_numbers_are_exact(numbers: Live) -> None:
    left = page(numbers, user_id="1", size=60, exclude=[str(LARGE), NINETEEN])["candidates"]["item_id"]["data"]
    assert not {LARGE, NINETEEN} & set(left)
    assert 2**63 - 1 in left


@pytest.mark.parametrize(
    ("changes", "path", "got"),
    [
        ({"user_id": "one"}, "$.user_id", "`one`"),
        ({"user_id": "07"}, "$.user_id", "`07`"),
        ({"user_id": str(2**63)}, "$.user_id", f"`{2**63}`"),
        ({"user_id": 2**63}, "$.user_id", str(2**63)),
        ({"user_id": ""}, "$.user_id", ""),
        ({"user_id": 1.5}, "$.user_id", "`float`"),
        ({"exclude": [1, " 2"]}, "$.exclude[1]", "` 2`"),
        ({"exclude": [1, 2**63]}, "$.exclude[1]", str(2**63)),
        ({"feedback": [seen("x", 1)]}, "$.feedback[0].item_id", "`x`"),
        ({"feedback": [seen(1, 1), seen(1, 2**64)]}, "$.feedback[1].user_id", str(2**64)),
    ],
)
def test_ids_that_are_no_whole_numbers(numbers: Live, changes: dict[str, Any], path: str, got: str) -> None:
    answer = post(numbers, "/v1/page", request(), **changes)
    assert (answer.status, answer.json()["path"]) == (400, path)
    assert got in answer.json()["error"]


@pytest.mark.parametrize("text", ["", "x" * 257])
def test_texts_have_bounds(texts: Live, text: str) -> None:
    answer = post(texts, "/v1/feedback", FeedbackBatch(events=()), events=[seen("item-1", text)])
    assert (answer.status, answer.json()["path"]) == (400, "$.events[0].user_id")
    assert feedback(texts, seen("item-1", "ü" * 256))["accepted"] == 1
