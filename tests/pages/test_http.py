import json
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from pocketrank.device.codec import from_json, from_msgpack, to_json, to_msgpack
from pocketrank.device.contract import BlockError, ContractError, FeedbackBatch, FeedbackReceipt, PageRequest, id_code
from pocketrank.pages import FeedbackNotKeptError, PageError, WireError, answer, error_answer, read
from tests.device.worlds import make_event

REQUEST = PageRequest(request_id="r-1", user_id=7, session_id="s-1", now_ms=1, size=3, feedback=(make_event(1),))
BATCH = FeedbackBatch(events=(make_event(1), make_event(2)))
RECEIPT = FeedbackReceipt(accepted=2, duplicates=0)
MSGPACK, JSON = "application/msgpack", "application/json"


@pytest.mark.parametrize("struct", [REQUEST, BATCH])
@pytest.mark.parametrize(
    ("headers", "encode"),
    [
        ({}, to_msgpack),
        ({"Content-Type": MSGPACK, "Content-Encoding": "identity"}, to_msgpack),
        ({"content-type": "application/x-msgpack; v=1"}, to_msgpack),
        ({"CONTENT-TYPE": "Application/JSON; charset=utf-8"}, to_json),
        ({"content-type": JSON}, lambda struct: b"\xef\xbb\xbf" + to_json(struct)),
    ],
)
def test_a_body_is_read_as_its_headers_say(struct: Any, headers: dict[str, str], encode: Any) -> None:
    assert read(type(struct), headers, encode(struct)) == struct


@pytest.mark.parametrize(
    ("headers", "body", "status", "path"),
    [
        ({"Content-Type": "text/plain"}, b"{}", 415, "content-type"),
        ({"Content-Type": "text/\u20ac"}, b"{}", 415, "content-type"),
        ({"Content-Type": JSON, "Content-Encoding": "gzip"}, b"\x1f\x8b", 415, "content-encoding"),
        ({"Content-Type": JSON}, b"[" * 101, 413, "$"),
    ],
)
def test_a_body_that_is_not_looked_at(headers: dict[str, str], body: bytes, status: int, path: str) -> None:
    with pytest.raises(WireError) as refused:
        read(PageRequest, headers, body, bytes_max=100)
    assert (refused.value.status, refused.value.path) == (status, path)
    assert error_answer(refused.value).status == status


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "Expected 1 to 50 candidates, got 0 - at `$.size`"),
        ({"size": 51}, "Expected 1 to 50 candidates, got 51 - at `$.size`"),
        ({"experiment": ""}, "Expected a name of 1 to 128 characters, got 0 characters - at `$.experiment`"),
        ({"user_id": "seven"}, r"at `$.user_id`"),
    ],
)
def test_a_request_that_the_contract_does_not_allow(changes: dict[str, Any], message: str) -> None:
    body = json.dumps({"request_id": "r", "user_id": 7, "session_id": "s", "now_ms": 1, "size": 50} | changes).encode()
    with pytest.raises(ContractError) as refused:
        read(PageRequest, {"Content-Type": JSON}, body, size_max=50)
    assert message in str(refused.value)
    assert error_answer(refused.value).status == 400


def encoded(struct: dict[str, Any], headers: dict[str, str]) -> bytes:
    return json.dumps(struct).encode() if headers["Content-Type"] == JSON else msgspec.msgpack.encode(struct)


@pytest.mark.parametrize("headers", [{"Content-Type": JSON}, {"Content-Type": MSGPACK}])
def test_texts_as_ids_become_their_codes(headers: dict[str, str]) -> None:
    event = {"event_id": "e", "user_id": "anna", "session_id": "s", "item_id": "film", "position": 0, "impression_ms": 1}
    event |= {"watch_ms": 2}
    asked = {"request_id": "r", "user_id": "anna", "session_id": "s", "now_ms": 1, "size": 3, "exclude": ["film", 7]}

    def request(**changes: Any) -> PageRequest:
        return read(PageRequest, headers, encoded(asked | changes, headers), text_ids=True)

    seven, five = (id_code("7"), id_code("5")) if headers["Content-Type"] == JSON else (7, 5)
    got = request(feedback=[event, event | {"user_id": 5}])
    assert type(got) is PageRequest
    assert (got.user_id, got.exclude) == (id_code("anna"), (id_code("film"), seven))
    assert [(e.user_id, e.item_id) for e in got.feedback] == [(id_code("anna"), id_code("film")), (five, id_code("film"))]
    assert request(own_ids=False).exclude == (id_code("film"), 7)
    assert request(user_id=5, exclude=[]).user_id == five
    batch = read(FeedbackBatch, headers, encoded({"events": [event]}, headers), text_ids=True)
    assert type(batch) is FeedbackBatch
    assert to_msgpack(batch) == to_msgpack(FeedbackBatch(events=got.feedback[:1]))
    for wrong, path in (({"user_id": ""}, r"\$\.user_id"), ({"exclude": ["a", "b" * 257]}, r"\$\.exclude\[1\]")):
        with pytest.raises(ContractError, match=f"an id of 1 to 256 characters, got .* - at `{path}`"):
            request(**wrong)
    with pytest.raises(ContractError, match=r"at `\$\.size`"):
        request(size="3")


@pytest.mark.parametrize("headers", [{"Content-Type": JSON}, {"Content-Type": MSGPACK}])
def test_numbers_as_texts_arrive_whole(headers: dict[str, str]) -> None:
    asked = {"request_id": "r", "user_id": "9007199254740993", "session_id": "s", "now_ms": 1, "size": 3, "exclude": ["-5", 7]}
    got = read(PageRequest, headers, encoded(asked, headers))
    assert (got.user_id, got.exclude) == (9_007_199_254_740_993, (-5, 7))
    for wrong in ("anna", "1.0", "01", "9223372036854775808", ""):
        with pytest.raises(ContractError, match=r"Expected a whole number of 64 signed bits, got `.*` - at `\$\.user_id`"):
            read(PageRequest, headers, encoded(asked | {"user_id": wrong}, headers))


@pytest.mark.parametrize(
    ("accept", "sent", "expected"),
    [(MSGPACK, UNSET, False), (MSGPACK, True, True), (JSON, UNSET, UNSET), (None, False, False)],
)
def test_a_page_in_messagepack_has_codes_unless_it_is_asked_for_own_ids(accept: str | None, sent: Any, expected: Any) -> None:
    body = to_msgpack(msgspec.structs.replace(REQUEST, own_ids=sent))
    assert read(PageRequest, {} if accept is None else {"Accept": accept}, body).own_ids is expected


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, JSON),
        ("*/*", JSON),
        (MSGPACK, MSGPACK),
        (f"{JSON}, {MSGPACK};q=0.5", JSON),
        (f"{MSGPACK}, {JSON};q=0.5", MSGPACK),
    ],
)
def test_an_answer_is_what_the_client_accepts(accept: str | None, kind: str) -> None:
    body, status, headers = answer(RECEIPT, {} if accept is None else {"Accept": accept})
    assert (status, headers) == (200, {"Content-Type": kind})
    assert (from_json if kind == JSON else from_msgpack)(body, FeedbackReceipt) == RECEIPT


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (
            BlockError("$.x", "[3]", "[2]"),
            400,
            {"error": "Expected [3], got [2] - at `$.x`", "path": "$.x", "expected": "[3]", "got": "[2]"},
        ),
        (
            PageError("scores.like", "[3]", "[2]"),
            500,
            {"error": "Internal error.", "path": "$", "expected": "an answer", "got": "PageError"},
        ),
        (
            FeedbackNotKeptError(),
            503,
            {
                "error": "Expected a store that keeps the feedback, got one that failed; send it again - at `$`",
                "path": "$",
                "expected": "a store that keeps the feedback",
                "got": "one that failed; send it again",
            },
        ),
    ],
)
def test_the_body_of_an_error(error: Exception, status: int, body: dict[str, str]) -> None:
    got = error_answer(error)
    assert (got.status, json.loads(got.body)) == (status, body)
    assert got.headers["Content-Type"] == JSON
    assert got.headers.get("Retry-After") == ("1" if status == 503 else None)
