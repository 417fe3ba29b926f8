import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pocketrank.device.codec import from_json, from_msgpack, read_page, to_block, to_json, to_msgpack
from pocketrank.device.contract import (
    BlockError,
    Columns,
    ContractError,
    DecodeError,
    FeedbackBatch,
    FeedbackEvent,
    Page,
    PageRequest,
    TelemetryReport,
    VersionError,
    check_event,
)
from tests.device.worlds import make_event, make_page
from tests.vectors.generate import COMMAND, FOLDER, TYPES, files, valid

INDEX = json.loads((FOLDER / "index.json").read_text())
WHOLE = to_msgpack(make_page([1, 2, 3]))
INT64 = st.integers(-(2**63), 2**63 - 1)


def test_committed_vectors_are_what_this_release_writes() -> None:
    wanted = files()
    stale = [path for path, data in wanted.items() if not (FOLDER / path).is_file() or (FOLDER / path).read_bytes() != data]
    have = {f"{p.parent.name}/{p.name}" for folder in ("valid", "bad") for p in (FOLDER / folder).iterdir()}
    assert not stale, f"{stale} differ; when that is meant, run: {COMMAND}"
    assert have <= set(wanted), f"{have - set(wanted)} are left over; run: {COMMAND}"


@pytest.mark.parametrize("name", INDEX["valid"])
def test_valid_vectors_decode_alike_from_both_forms(name: str) -> None:
    entry = INDEX["valid"][name]
    struct = valid()[entry.get("same_as", name)]
    kind = TYPES[entry["type"]]
    packed = from_msgpack((FOLDER / "valid" / f"{name}.msgpack").read_bytes(), kind)
    text = from_json((FOLDER / "valid" / f"{name}.json").read_bytes(), kind)
    assert packed == struct
    assert text == struct


@pytest.mark.parametrize("name", INDEX["bad"])
def test_bad_vectors_are_refused_with_the_path(name: str) -> None:
    entry = INDEX["bad"][name]
    decode = from_json if name.endswith(".json") else from_msgpack
    with pytest.raises(ContractError) as caught:
        decode((FOLDER / "bad" / name).read_bytes(), TYPES[entry["type"]])
    assert (type(caught.value).__name__, caught.value.path) == (entry["error"], entry["path"])


def test_errors_say_expected_got_and_where() -> None:
    data = msgspec.json.encode(json.loads(to_json(make_event(5))) | {"item_id": "five"})
    with pytest.raises(DecodeError, match=r"^Expected `int`, got `str` - at `\$\.item_id`$"):
        from_json(data, FeedbackEvent)


def test_a_later_version_is_reported_even_if_its_fields_changed_type() -> None:
    with pytest.raises(VersionError, match="Expected version 1, got version 2"):
        from_msgpack(msgspec.msgpack.encode({"version": 2, "candidates": "elsewhere"}), Page)


def test_event_versions_inside_a_request_are_checked() -> None:
    event = msgspec.structs.replace(make_event(1), version=3)
    request = PageRequest(request_id="r", user_id=1, session_id="s", now_ms=0, size=1, feedback=(event,))
    with pytest.raises(VersionError) as caught:
        from_msgpack(to_msgpack(request), PageRequest)
    assert caught.value.path == "$.feedback[0].version"


@pytest.mark.parametrize("field", ["user_id", "item_id", "pauses", "buffering_ms"])
def test_integers_beyond_64_bits_are_refused(field: str) -> None:
    data: dict[str, Any] = json.loads(to_json(make_event(1))) | {field: 2**63}
    for decode, encoded in ((from_json, msgspec.json.encode(data)), (from_msgpack, msgspec.msgpack.encode(data))):
        with pytest.raises(DecodeError) as caught:
            decode(encoded, FeedbackEvent)
        assert caught.value.path == f"$.{field}"


@pytest.mark.parametrize("field", ["user_id", "now_ms"])
def test_integers_beyond_64_bits_are_refused_in_a_struct_that_derives_from_one_of_the_contract(field: str) -> None:
    """As the server's own requests do, which take any telemetry."""
    own = msgspec.defstruct("Own", [], bases=(PageRequest,), frozen=True, kw_only=True)
    data = {"request_id": "r", "user_id": 1, "session_id": "s", "now_ms": 0, "size": 1, field: 2**63}
    with pytest.raises(DecodeError) as caught:
        from_msgpack(msgspec.msgpack.encode(data), own)
    assert caught.value.path == f"$.{field}"


def test_times_beyond_64_bits_are_refused() -> None:
    report = TelemetryReport(report_id="0" * 32, since_ms=0, until_ms=0)
    for struct, field in ((make_page([1]), "created_ms"), (make_page([1]), "ttl_ms"), (report, "until_ms")):
        data = json.loads(to_json(struct)) | {field: 2**63}
        with pytest.raises(DecodeError) as caught:
            from_json(msgspec.json.encode(data), type(struct))
        assert caught.value.path == f"$.{field}"


def test_what_cannot_be_written_is_a_typed_error() -> None:
    with pytest.raises(DecodeError, match="can be written"):
        to_msgpack(make_event(2**70))
    event: Any = make_event(1, volume=object())
    with pytest.raises(DecodeError, match="can be written"):
        to_json(event)


EVENTS = st.builds(
    FeedbackEvent,
    event_id=st.text(),
    user_id=INT64,
    session_id=st.text(),
    item_id=INT64,
    position=INT64,
    impression_ms=INT64,
    watch_ms=INT64,
    page_id=st.none() | st.text(),
    ended=st.sampled_from([0, 1, 2, 3]),
    like=st.booleans(),
    volume=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    muted=st.none() | st.booleans(),
    pauses=st.none() | INT64,
)


@given(st.lists(EVENTS, max_size=3))
def test_events_survive_both_forms(events: list[FeedbackEvent]) -> None:
    batch = FeedbackBatch(events=tuple(events))
    assert from_msgpack(to_msgpack(batch), FeedbackBatch) == batch
    assert from_json(to_json(batch), FeedbackBatch) == batch


@given(st.lists(INT64, max_size=6), st.booleans(), st.integers(0, 99))
def test_pages_survive_both_forms(items: list[int], split: bool, seed: int) -> None:
    page = make_page(items, seed, split="v" if split else None)
    assert from_msgpack(to_msgpack(page), Page) == page
    assert from_json(to_json(page), Page) == page
    read_page(page)


def test_values_that_are_not_finite_are_null_in_json() -> None:
    floats = Columns(names=("a",), values=to_block(np.array([[math.nan], [math.inf], [1.5]]), "f4"))
    page = make_page([1, 2, 3])
    page = msgspec.structs.replace(page, candidates=msgspec.structs.replace(page.candidates, floats=floats))
    text = to_json(page)
    assert json.loads(text)["candidates"]["floats"]["values"]["data"] == [None, None, 1.5]
    np.testing.assert_array_equal(read_page(from_json(text, Page)).floats, [[math.nan], [math.nan], [1.5]])


def tame(read: Callable[[], object]) -> bool:
    """Whether `read` returns, or raises a short error with a path. Any other error goes through and fails the test."""
    try:
        read()
    except ContractError as err:
        return err.path.startswith("$") and len(str(err)) < 500
    return True


@given(st.binary(max_size=60), st.sampled_from(sorted(TYPES)))
def test_random_bytes_raise_nothing_untyped(data: bytes, kind: str) -> None:
    assert tame(lambda: from_msgpack(data, TYPES[kind]))
    assert tame(lambda: from_json(data, TYPES[kind]))


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 40))
def test_mutated_pages_raise_nothing_untyped(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    assert tame(lambda: read_page(from_msgpack(bytes(data[: len(data) - cut]), Page)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)
PAGE_TEXT = to_json(make_page([1, 2]))


@given(st.data(), JSON)
def test_pages_with_anything_anywhere_raise_nothing_untyped(data: st.DataObject, value: Any) -> None:
    page = json.loads(PAGE_TEXT)
    at, keys = page, data.draw(st.sampled_from(sorted(page)))
    while isinstance(at[keys], dict) and data.draw(st.booleans()):
        at = at[keys]
        keys = data.draw(st.sampled_from(sorted(at)))
    at[keys] = value
    assert tame(lambda: read_page(from_json(json.dumps(page).encode(), Page)))


def _with(page: Page, **changes: Any) -> Page:
    return msgspec.structs.replace(page, candidates=msgspec.structs.replace(page.candidates, **changes))


TWICE = Columns(names=("a", "a"), values=to_block(np.zeros((1, 2)), "f4"))
WIDE = Columns(names=("a",), values=to_block(np.zeros((1, 2), int), "i4"))


@pytest.mark.parametrize(
    ("page", "path"),
    [
        (_with(make_page([1, 2]), item_id=to_block(np.array([1, 2]), "i4")), "$.candidates.item_id.dtype"),
        (_with(make_page([1, 2]), item_id=to_block(np.array([1]), "i8")), "$.candidates.floats.values.shape"),
        (_with(make_page([1, 2]), vector=to_block(np.zeros((1, 4)), "f2")), "$.candidates.vector.shape"),
        (_with(make_page([1, 2]), vector=to_block(np.zeros((2, 3)), "f2")), "$.user_vector.shape"),
        (_with(make_page([1, 2]), vector=to_block(np.zeros((2, 4)), "f4")), "$.candidates.vector.dtype"),
        (_with(make_page([1]), floats=TWICE), "$.candidates.floats.names"),
        (_with(make_page([1]), categories=WIDE), "$.candidates.categories.values.shape"),
        (msgspec.structs.replace(make_page([1]), split_version=None), "$.split_version"),
    ],
)  # fmt: skip
def test_pages_that_are_not_whole_name_the_path(page: Page, path: str) -> None:
    with pytest.raises(BlockError) as caught:
        read_page(page)
    assert caught.value.path == path


def test_empty_and_repeating_pages_are_whole() -> None:
    read_page(make_page([]))
    read_page(make_page([5, 5]))


def test_threads_that_meet_a_type_at_once_do_not_crash_the_process() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.device.decode_at_once", "200"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def _keyed() -> Page:
    page = make_page([11, 2**53 + 1, 1_234_567_890_123_456_789])
    return replace(page, candidates=replace(page.candidates, item_key=("a", "Ünï", "9007199254740993")))


def test_own_ids_of_items_are_beside_the_codes_in_messagepack() -> None:
    read = from_msgpack(to_msgpack(_keyed()), Page)
    assert read == _keyed()
    assert read_page(read).item_id.tolist() == [11, 2**53 + 1, 1_234_567_890_123_456_789]


def test_own_ids_of_items_are_in_place_of_the_codes_in_json() -> None:
    text = to_json(_keyed())
    block = json.loads(text)["candidates"]["item_id"]
    assert block == {"dtype": "text", "shape": [3], "data": ["a", "Ünï", "9007199254740993"]}
    assert "item_key" not in json.loads(text)["candidates"]
    with pytest.raises(DecodeError) as caught:  # a device knows codes
        from_json(text, Page)
    assert caught.value.path == "$.candidates.item_id.dtype"


def test_a_page_with_fewer_own_ids_than_items_is_not_whole() -> None:
    page = _keyed()
    with pytest.raises(BlockError) as caught:
        read_page(replace(page, candidates=replace(page.candidates, item_key=("a",))))
    assert str(caught.value) == "Expected 3 texts, got 1 texts - at `$.candidates.item_key`"


@pytest.mark.parametrize(
    ("actions", "path"),
    [
        (("purchase", "purchase"), "$.actions[1]"),
        (("purchase", "like"), "$.actions[1]"),
        (("Purchase",), "$.actions[0]"),
        (("purchase\n",), "$.actions[0]"),
        (tuple(f"a{i}" for i in range(33)), "$.actions"),
    ],
)
def test_actions_that_no_event_may_have(actions: tuple[str, ...], path: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_event(make_event(1, actions=actions))
    assert caught.value.path == path


def test_actions_survive_both_forms_and_cost_nothing_where_there_are_none() -> None:
    event = make_event(1, actions=("purchase", "add_to_cart"))
    check_event(event)
    assert from_msgpack(to_msgpack(event), FeedbackEvent) == from_json(to_json(event), FeedbackEvent) == event
    assert b"actions" not in to_msgpack(make_event(1))
    with pytest.raises(DecodeError) as caught:  # before they are all read
        from_msgpack(to_msgpack(make_event(1, actions=("a",) * 33)), FeedbackEvent)
    assert caught.value.path == "$.actions"
