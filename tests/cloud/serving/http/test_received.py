from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pocketrank.cloud.pipeline.config import BudgetConfig
from pocketrank.cloud.serving.http.received import as_received
from pocketrank.device.codec import from_json, from_msgpack, to_json, to_msgpack
from pocketrank.device.contract import ContractError, FeedbackBatch, PageRequest
from tests.cloud.events import event

REQUEST = PageRequest(request_id="r", user_id=1, session_id="s", now_ms=0, size=5, exclude=(1, 2), feedback=(event(),))
LIMITS = BudgetConfig(events_max=3, exclude_max=4)
RECEIVED, BATCH = as_received(PageRequest, LIMITS), as_received(FeedbackBatch, LIMITS)
WIRES = pytest.mark.parametrize(
    ("encode", "decode"), [(to_msgpack, from_msgpack), (to_json, from_json)], ids=["msgpack", "json"]
)  # fmt: skip


@WIRES
def test_what_is_within_the_bounds_is_read_as_before(encode: Callable[[Any], bytes], decode: Callable[..., Any]) -> None:
    for sent, struct in ((REQUEST, RECEIVED), (FeedbackBatch(events=(event(),) * 3), BATCH)):
        got = decode(encode(sent), struct)
        assert isinstance(got, type(sent))
        assert all(getattr(got, name) == getattr(sent, name) for name in sent.__struct_fields__ if name != "telemetry")


@WIRES
def test_longer_lists_are_refused(encode: Callable[[Any], bytes], decode: Callable[..., Any]) -> None:
    replace = msgspec.structs.replace
    for sent, struct, path in (
        (replace(REQUEST, exclude=(0,) * 5), RECEIVED, "$.exclude"),
        (replace(REQUEST, feedback=(event(),) * 4), RECEIVED, "$.feedback"),
        (FeedbackBatch(events=(event(),) * 4), BATCH, "$.events"),
    ):
        with pytest.raises(ContractError) as caught:
            decode(encode(sent), struct)
        assert caught.value.path == path


def test_a_long_list_is_refused_before_its_elements_are_read() -> None:
    body = {**msgspec.to_builtins(REQUEST), "exclude": ["not a number"] * 5}
    with pytest.raises(ContractError) as caught:
        from_msgpack(msgspec.msgpack.encode(body), RECEIVED)
    assert caught.value.path == "$.exclude"


def test_the_rest_of_a_request_is_validated_as_before() -> None:
    with pytest.raises(ContractError) as caught:
        from_msgpack(msgspec.msgpack.encode({**msgspec.to_builtins(REQUEST), "size": "5"}), RECEIVED)
    assert caught.value.path == "$.size"
    with pytest.raises(ContractError, match="a PageRequest"):
        from_msgpack(b"\xc1", RECEIVED)
