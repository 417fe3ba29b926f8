import json
from typing import Any

import pytest

from pocketrank.device.codec import from_json, from_msgpack, to_json, to_msgpack
from pocketrank.device.contract import BlockError, ContractError, FeedbackBatch, FeedbackReceipt, PageRequest
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
