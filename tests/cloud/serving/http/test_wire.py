import msgspec
import pytest

from pocketrank.cloud.serving.http.wire import JSON, MSGPACK, answer_type, decode, encode
from pocketrank.device.contract import ContractError


class _Answer(msgspec.Struct):
    name: str = "x"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/html", JSON),
        ("Application/JSON", JSON),
        ("application/msgpack", MSGPACK),
        ("Application/MsgPack", MSGPACK),
        ("application/x-msgpack", MSGPACK),
        ("application/vnd.msgpack;version=2", MSGPACK),
        ("application/msgpack, */*", MSGPACK),
        ("application/json, application/msgpack", MSGPACK),
        ("application/json;q=0.5,application/msgpack;q=0.9", MSGPACK),
        ("application/json; q=0.9, application/msgpack; q=0.5", JSON),
        ("application/msgpack;q=0.5, */*", JSON),
        ("application/msgpack;q=0.5, */*;q=0.1", MSGPACK),
        ("application/json;q=0.1, application/msgpack;q=0.5, */*", MSGPACK),
        ("application/msgpack;Q=0", JSON),
        ("application/msgpack;q=0, application/x-msgpack", MSGPACK),
        ("application/msgpack;q=many", JSON),
        ("application/json;q=0, */*", MSGPACK),
        ("application/json;q=0, application/*;q=0.1", MSGPACK),
        ("application/json;q=0, application/msgpack;q=0, */*", JSON),
        ("application/json;q=0", JSON),
        ("*/*;q=0", JSON),
        ("application/msgpack, */*;q=0", MSGPACK),
        ("application/msgpack-stream", JSON),
        (",;=,q=1,;q", JSON),
    ],
)
def test_the_answer_is_of_the_kind_that_accept_prefers(accept: str | None, kind: str) -> None:
    assert answer_type(None if accept is None else accept.encode()) == kind
    body = encode(kind, _Answer())
    assert (msgspec.json if kind == JSON else msgspec.msgpack).decode(body, type=_Answer) == _Answer()


def test_json_may_begin_with_a_mark_of_utf_8() -> None:
    assert decode(JSON, b'\xef\xbb\xbf{"name":"y"}', _Answer).name == "y"
    with pytest.raises(ContractError):
        decode(MSGPACK, b"\xef\xbb\xbf" + msgspec.msgpack.encode(_Answer()), _Answer)
