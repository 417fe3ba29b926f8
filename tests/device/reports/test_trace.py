import resource
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pocketrank.device.codec import to_block
from pocketrank.device.contract import Dtype
from pocketrank.device.model.features import FeatureBuilder
from pocketrank.device.model.history import EventHistory
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.paging import PageDecision
from pocketrank.device.ranking.ranker import Moment, Ranker
from pocketrank.device.reports.trace import (
    FRAME_MAX,
    MAGIC,
    CorruptTraceError,
    CutTraceError,
    NotATraceError,
    TracedDecision,
    TraceError,
    TracePlaceError,
    Tracer,
    read_trace,
    whole_inputs,
)
from tests.device.worlds import SPEC, T0, make_bundle, make_event, make_page, reference

CONTEXT = np.array([[3.0, 22.0]], np.float32)
DTYPES: dict[str, Dtype] = {"float32": "f4", "int32": "i4", "int64": "i8"}
SCORES = np.array([[0.5, 0.1], [0.25, 0.5], [0.75, 0.0]], np.float32)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    return Ranker.open(make_bundle(tmp_path_factory.mktemp("bundle")))


class Seen:
    """State of a session after some events: three candidates, and the items 90, 91, .. that were shown before."""

    def __init__(self, events: int = 2) -> None:
        builder = FeatureBuilder(SPEC)
        self.held, self.history = Remaining(builder.page(make_page([10, 11, 12])), 8), EventHistory(SPEC)
        earlier, feedback = builder.page(make_page(list(range(90, 90 + max(1, events))), seed=1)), np.zeros(5, np.float32)
        self.events = [make_event(90 + at, at) for at in range(events)]
        for at, event in enumerate(self.events):
            builder.feedback(event, feedback)
            self.history.append(event.impression_ms, event.position, feedback, earlier, at)

    def write(self, tracer: Tracer, ranker: Ranker | None, **changes: Any) -> None:
        fields = {"form": "split", "now_ms": T0 + 60_000, "position": 3, "shown": 11, "scores": SCORES, **changes}
        moment = Moment(self.held, self.history, CONTEXT, fields.pop("now_ms"), fields.pop("position"))
        tracer.decision(ranker, fields.pop("form"), moment, np.array([1, 2, 0]), **fields)


def _trace(path: Path, ranker: Ranker, decisions: int = 3) -> Path:
    moment = Seen()
    with Tracer(path) as tracer:
        for event in moment.events:
            tracer.feedback(event.item_id, event.impression_ms)
        for position in range(decisions):
            moment.write(tracer, ranker, position=position)
    return path


def _read(path: Path) -> tuple[list[TracedDecision], TraceError | None]:
    found: list[TracedDecision] = []
    try:
        found.extend(read_trace(path))
    except TraceError as err:
        return found, err
    return found, None


def test_a_decision_comes_back_whole(tmp_path: Path, ranker: Ranker) -> None:
    moment, paging = Seen(), PageDecision(False, 30, "continue")
    told: dict[str, Any] = {
        "page_id": "p", "bundle": "tiny/1", "fallback": "vectors_absent", "personal": True, "strategies": ("gap: 12 waits",),
        "paging": paging, "spent_ms": 0.25,
    }  # fmt: skip
    with Tracer(tmp_path / "t") as tracer:
        for event in reversed(moment.events):  # feedback may come in any order
            tracer.feedback(event.item_id, event.impression_ms)
        moment.write(tracer, ranker, **told)
        assert (tracer.written, tracer.missed, tracer.stopped) == (1, 0, None)
    (decision,) = read_trace(tmp_path / "t")
    assert {name: getattr(decision, name) for name in told} == told
    assert (decision.form, decision.position, decision.shown, decision.now_ms) == ("split", 3, 11, T0 + 60_000)
    assert decision.held.tolist() == [10, 11, 12]
    assert decision.order.tolist() == [1, 2, 0]
    assert decision.event_items.tolist() == [90, 91]
    assert (decision.spec, decision.split_version) == (SPEC, ranker.split_version)
    np.testing.assert_array_equal(decision.scores, SCORES)
    np.testing.assert_allclose(decision.total, SCORES @ [1, 2])


@pytest.mark.parametrize("events", [0, 1, 4])
@pytest.mark.parametrize("form", ["split", "self_contained"])
def test_the_whole_model_computes_the_recorded_scores_from_the_recorded_inputs(
    form: Any, events: int, tmp_path: Path, ranker: Ranker
) -> None:
    moment = Seen(events)
    with Tracer(tmp_path / "t") as tracer:
        moment.write(tracer, ranker, form=form)
    (decision,) = read_trace(tmp_path / "t")
    then, _ = ranker.inputs(form, Moment(moment.held, moment.history, CONTEXT, T0 + 60_000, 3))
    np.testing.assert_array_equal(ranker.runtimes[form]["whole"].run(decision.inputs), ranker.runtimes[form]["whole"].run(then))
    np.testing.assert_allclose(ranker.runtimes[form]["whole"].run(decision.inputs), reference(SPEC, decision.inputs), atol=1e-5)
    assert decision.event_items.tolist() == [0] * events, "this tracer was told of no event"


def test_no_more_candidates_than_the_model_takes(ranker: Ranker) -> None:
    moment = Seen()
    inputs = whole_inputs("self_contained", Moment(moment.held, moment.history, CONTEXT, T0, 3), 2)
    assert {inputs[name].shape[1] for name in inputs if name.startswith("candidate")} == {2}


def test_without_a_model_a_decision_has_no_inputs(tmp_path: Path) -> None:
    with Tracer(tmp_path / "t") as tracer:
        Seen().write(tracer, None, form=None, scores=None)
    (decision,) = read_trace(tmp_path / "t")
    assert (decision.inputs, decision.spec, decision.total) == ({}, None, None)
    assert decision.order.tolist() == [1, 2, 0]


def test_a_trace_is_a_new_file_in_a_folder_that_exists(tmp_path: Path) -> None:
    Tracer(tmp_path / "t").close()
    for place in (tmp_path / "t", tmp_path, tmp_path / "nowhere" / "t"):
        with pytest.raises(TracePlaceError):
            Tracer(place)
    assert list(read_trace(tmp_path / "t")) == []


def test_a_trace_stops_at_its_limit_and_says_so(tmp_path: Path, ranker: Ranker) -> None:
    frame = _trace(tmp_path / "one", ranker, 1).stat().st_size - len(MAGIC)
    with Tracer(tmp_path / "t", bytes_max=len(MAGIC) + 2 * frame) as tracer:
        for _ in range(4):
            Seen().write(tracer, ranker)
        assert (tracer.written, tracer.missed) == (2, 2)
        assert "beyond the limit" in str(tracer.stopped)
    assert (tmp_path / "t").stat().st_size <= len(MAGIC) + 2 * frame
    assert len(list(read_trace(tmp_path / "t"))) == 2


def test_a_full_disk_ends_the_trace_and_not_the_swipe(tmp_path: Path, ranker: Ranker) -> None:
    """A limit on the size of this process's files acts as a full disk: the write is cut short, then refused."""
    frame = _trace(tmp_path / "one", ranker, 1).stat().st_size - len(MAGIC)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Tracer(tmp_path / "t") as tracer:
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(MAGIC) + frame + frame // 2, limits[1]))
        try:
            for _ in range(3):
                Seen().write(tracer, ranker)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        assert (tracer.written, tracer.missed) == (1, 2)
        assert tracer.stopped
    assert len(list(read_trace(tmp_path / "t"))) == 1


def test_a_decision_that_no_frame_can_hold_ends_the_trace(tmp_path: Path, ranker: Ranker) -> None:
    with Tracer(tmp_path / "t") as tracer:
        Seen().write(tracer, ranker, now_ms=1 << 70)
        Seen().write(tracer, ranker)
        assert (tracer.written, tracer.missed) == (0, 2)
        assert tracer.stopped
    assert list(read_trace(tmp_path / "t")) == []


def test_after_close_nothing_is_written(tmp_path: Path, ranker: Ranker) -> None:
    tracer = Tracer(tmp_path / "t")
    tracer.close()
    Seen().write(tracer, ranker)
    assert (tracer.written, tracer.missed, tracer.stopped) == (0, 1, "closed")


def test_what_a_killed_process_wrote_is_read(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    code = [sys.executable, "-m", "tests.device.trace_until_killed", str(tmp_path / "bundle"), str(tmp_path / "t")]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(5)]
        process.kill()
    assert told == [1, 2, 3, 4, 5]
    found, err = _read(tmp_path / "t")
    assert len(found) >= 5
    assert err is None or isinstance(err, CutTraceError)


# ------------------------------------------------------------------------------------------------------------ bad files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ranker: Ranker) -> bytes:
    return _trace(tmp_path_factory.mktemp("trace") / "t", ranker).read_bytes()


@given(st.data())
def test_the_frames_before_a_cut_are_read(whole: bytes, tmp_path_factory: Any, data: st.DataObject) -> None:
    size = data.draw(st.integers(len(MAGIC), len(whole) - 1))
    path = tmp_path_factory.getbasetemp() / "cut"
    path.write_bytes(whole[:size])
    found, err = _read(path)
    frame = (len(whole) - len(MAGIC)) // 3
    assert len(found) == (size - len(MAGIC)) // frame
    assert isinstance(err, CutTraceError) or (err is None and (size - len(MAGIC)) % frame == 0)


@given(st.data())
def test_any_change_is_refused_with_a_typed_error(whole: bytes, tmp_path_factory: Any, data: st.DataObject) -> None:
    at, flip = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
    found, err = _read(path)
    assert isinstance(err, NotATraceError if at < len(MAGIC) else CorruptTraceError | CutTraceError)
    assert len(found) == max(0, at - len(MAGIC)) // ((len(whole) - len(MAGIC)) // 3)


@given(st.binary(max_size=200))
def test_garbage_is_refused(tmp_path_factory: Any, garbage: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage"
    path.write_bytes(MAGIC + garbage)
    found, err = _read(path)
    assert not found
    assert isinstance(err, CutTraceError | CorruptTraceError) or not garbage


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": 2}, "version 1"),
        ({"held": np.zeros(3, np.float32)}, "items and places"),
        ({"order": np.array([0, 1, 1], np.int32)}, "an order of 3 items"),
        ({"order": np.array([0, 1], np.int32)}, "an order of 3 items"),
        ({"scores": np.zeros((3, 5), np.float32)}, "scores of the spec's tasks"),
        ({"scores": np.zeros((4, 2), np.float32)}, "scores of the spec's tasks"),
        ({"scores": np.zeros(2, np.float32)}, "scores of the spec's tasks"),
        ({"inputs": {"context": CONTEXT}}, "a model's inputs"),
        ({"event_items": np.zeros(5, np.int64)}, "a model's inputs"),
        ({"spec": None, "scores": None}, "a model's inputs"),
        ({"spec": replace(SPEC, events_max=0)}, "a decision"),
    ],
)
def test_a_frame_that_no_session_writes_is_refused(
    changes: dict[str, Any], expected: str, whole: bytes, tmp_path: Path, ranker: Ranker
) -> None:
    """The frame has a valid CRC-32, as an attacker would make it."""
    (decision,) = read_trace(_trace(tmp_path / "good", ranker, 1))
    payload = msgspec.msgpack.encode(
        replace(decision, **changes), enc_hook=lambda array: to_block(array, DTYPES[array.dtype.name])
    )
    head = len(payload).to_bytes(4, "little") + zlib.crc32(payload).to_bytes(4, "little")
    (tmp_path / "t").write_bytes(whole + head + payload)
    found, err = _read(tmp_path / "t")
    assert len(found) == 3
    assert isinstance(err, CorruptTraceError)
    assert expected in err.expected


def test_a_claim_of_a_huge_frame_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(MAGIC + (FRAME_MAX + 1).to_bytes(4, "little") + bytes(4))
    _, err = _read(tmp_path / "t")
    assert isinstance(err, CorruptTraceError)


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_path_that_is_not_a_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotATraceError):
        list(read_trace(tmp_path / name))
