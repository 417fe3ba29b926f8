from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.reports.trace import NotATraceError, read_trace
from pocketrank.export.explain import explain
from pocketrank.sdk_demo.inspection import inspect_session, why
from pocketrank.sdk_demo.inspection.session import ForeignBundleError, did
from tests.device import worlds
from tests.export.explained import explained_bundle
from tests.sdk_demo.inspection.traces import FIRST_ITEM, trace_session


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return explained_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def trace(bundle: Bundle) -> Path:
    trace_session(bundle.folder.parent / "session.trace", bundle)
    return bundle.folder.parent / "session.trace"


def test_a_row_for_each_decision(trace: Path) -> None:
    report, decisions = inspect_session(trace)
    assert (report["damage"], report["cut"]) == (None, False)
    assert [row["position"] for row in report["decisions"]] == [0, 1, 2, 3]
    for row, decision in zip(report["decisions"], decisions, strict=True):
        total = decision.total
        assert total is not None
        assert (row["form"], row["ordered"], row["bundle"], row["strategies"]) == ("split", True, "small/1", ["gap: 103 waits"])
        assert row["rank"] == 1
        assert decision.held[row["cloud_rank"] - 1] == row["shown"]
        assert (row["total"], row["best_other"]) == (np.sort(total)[-1], np.sort(total)[-2])
        assert row["held"] == 6 - row["position"]
        assert row["events"] == row["position"]
    assert report["decisions"][0]["paging"] == {"request": True, "size": 30, "reason": "empty"}


def test_why_tells_what_the_model_attended_to_and_what_that_did(trace: Path, bundle: Bundle) -> None:
    decision = list(read_trace(trace))[3]
    found, told = explain(bundle, "split", decision.inputs), why(decision, bundle)
    weights = np.array([1.0, 2.0])
    shown = int(decision.order[0])
    assert told["explained"]["model"] == "split.onnx"
    assert told["explained"]["differs"] < 1e-5
    assert found.attention is not None
    assert told["explained"]["null_attention"] == found.attention[:, shown, 0].tolist()
    earlier = [int(d.shown) for d in read_trace(trace)][:3]
    assert [event["item"] for event in told["events"]] == earlier[::-1]
    for t, event in zip((2, 1, 0), told["events"], strict=True):
        assert (event["seconds_ago"], event["positions_ago"]) == (10 * (3 - t), 3 - t)
        assert event["attention"] == found.attention[:, shown, 1 + t].tolist()
        assert event["influence"]["total"] == pytest.approx(found.influence[t, shown] @ weights, abs=1e-6)
        assert event["did"] == {"watch_ms": 4000 + 100 * t} | ({"like": True} if t == 0 else {})
    for rank, row in enumerate(told["candidates"]):
        place = int(decision.order[rank])
        assert (row["item"], row["cloud_rank"]) == (decision.held[place], place + 1)
        np.testing.assert_allclose(row["attention"], found.attention[:, place, :0:-1].mean(0), atol=1e-6)
        np.testing.assert_allclose(row["influence"], found.influence[::-1, place] @ weights, atol=1e-6)
        assert row["total"] == pytest.approx(sum(w * row["scores"][t] for t, w in bundle.spec.task_weights.items()), abs=1e-5)
    best_unwatched = int((found.unwatched @ weights).argmax())
    assert [row["item"] for row in told["candidates"] if row["unwatched"] == 1] == [decision.held[best_unwatched]]


def test_without_a_bundle_there_is_what_the_trace_has(trace: Path) -> None:
    told = why(list(read_trace(trace))[1])
    assert told["explained"] is None
    assert told["candidates"][0]["item"] == told["decision"]["shown"]
    assert all("scores" in row and "unwatched" not in row for row in told["candidates"])
    assert all("influence" not in event for event in told["events"])


def test_where_no_model_ordered_its_scores_are_those_of_now(trace: Path, bundle: Bundle) -> None:
    decision = replace(list(read_trace(trace))[2], scores=None, fallback="model_failed")
    told = why(decision, bundle)
    assert told["explained"]["differs"] is None
    assert (told["decision"]["ordered"], told["decision"]["fallback"]) == (False, "model_failed")
    scores = explain(bundle, "split", decision.inputs).scores
    assert list(told["candidates"][0]["scores"].values()) == scores[decision.order[0]].tolist()


def test_cloud_order_has_places_alone(trace: Path, bundle: Bundle) -> None:
    decision = replace(next(read_trace(trace)), form=None, inputs={}, scores=None)
    told = why(decision, bundle)
    assert (told["explained"], told["events"]) == (None, [])
    assert [row["item"] for row in told["candidates"]] == decision.held[decision.order].tolist()


def test_of_an_item_that_was_not_held_there_is_no_attention(trace: Path, bundle: Bundle) -> None:
    told = why(replace(list(read_trace(trace))[3], shown=FIRST_ITEM - 1), bundle)
    assert (told["decision"]["cloud_rank"], told["decision"]["rank"], told["decision"]["total"]) == (None, None, None)
    assert told["explained"]["null_attention"] is None
    assert all("influence" in row for row in told["candidates"])


def test_another_bundle_does_not_explain(trace: Path, tmp_path: Path) -> None:
    decision = next(read_trace(trace))
    with pytest.raises(ForeignBundleError, match=r"Expected the bundle small/1.*got small/2"):
        why(decision, explained_bundle(tmp_path / "later", serial=2))
    with pytest.raises(ForeignBundleError, match=worlds.SPLIT):
        why(decision, worlds.make_bundle(tmp_path / "tiny"))


def test_a_killed_session_is_reported_up_to_its_end(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(trace.read_bytes()[:-9])
    report, decisions = inspect_session(tmp_path / "cut")
    assert (len(decisions), report["cut"]) == (3, True)
    (tmp_path / "changed").write_bytes(trace.read_bytes()[:-9] + b"\0" * 9)
    report, decisions = inspect_session(tmp_path / "changed")
    assert (len(decisions), report["cut"]) == (3, False)
    assert "as it was written" in report["damage"]
    with pytest.raises(NotATraceError):
        inspect_session(tmp_path)


def test_what_a_user_did_is_in_the_units_of_an_event() -> None:
    spec = worlds.SPEC  # watch_ms, like, volume (default .5), network (default wifi), ended
    assert did(spec, np.array([4.1, 0, 0.5, 2, 0], np.float32)) == {"watch_ms": 4100}
    assert did(spec, np.array([0, 1, 0.25, 1, 2], np.float32)) == {
        "watch_ms": 0, "like": True, "volume": 0.25, "network": "cellular", "ended": "exit",
    }  # fmt: skip
    assert did(spec, np.array([0, 0, 0.5, 7, 0], np.float32))["network"] == 7
