from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.device.codec import from_json, from_msgpack, to_json, to_msgpack
from pocketrank.device.contract import ContractError, FeedbackBatch, TelemetryReport
from pocketrank.device.contract.telemetry import BUCKETS_MAX, COUNT_MAX, NAMES_MAX
from pocketrank.device.reports.telemetry import OTHER, Telemetry, TelemetryConfig
from tests.device.worlds import T0

NAMES = st.sampled_from(
    ["reranks", "model_failed", "a", "x" * 48, "", "Upper", "with space", 'quo"te', "new\nline", "é", "x" * 49]
)


def reported(telemetry: Telemetry, now_ms: int = T0) -> TelemetryReport:
    report = telemetry.report(now_ms)
    assert report is not None
    return report


def test_a_report_has_what_was_counted_since_the_last() -> None:
    telemetry = Telemetry("s", T0, sdk="1.0", bundle="world/3", tier="full")
    assert telemetry.report(T0) is None
    telemetry.count("reranks")
    telemetry.count("reranks", 4)
    telemetry.time("rerank", 5_000)
    first = reported(telemetry, T0 + 5)
    assert first.counters == {"reranks": 5}
    assert (first.since_ms, first.until_ms, first.sample_rate) == (T0, T0 + 5, 1.0)
    assert (first.sdk, first.bundle, first.tier) == ("1.0", "world/3", "full")
    assert telemetry.report(T0 + 6) is None
    telemetry.count("reranks")
    second = reported(telemetry, T0 + 9)
    assert (second.counters, second.timings, second.since_ms) == ({"reranks": 1}, {}, T0 + 5)
    assert second.report_id != first.report_id


@pytest.mark.parametrize(
    ("ns", "bucket"), [(-5, 0), (0, 0), (1_999, 0), (2_000, 1), (3_999, 1), (4_000, 2), (1 << 60, BUCKETS_MAX - 1)]
)
def test_a_time_is_in_the_bucket_of_its_power_of_two(ns: int, bucket: int) -> None:
    telemetry = Telemetry("s", T0)
    telemetry.time("rerank", ns)
    timing = reported(telemetry).timings["rerank"]
    assert timing.buckets == (0,) * bucket + (1,)
    assert (timing.count, timing.max_us) == (1, timing.sum_us)


@given(st.lists(st.tuples(NAMES, st.integers(-5, 1 << 40)), max_size=60), st.booleans())
def test_every_report_is_one_that_the_contract_allows(calls: list[tuple[str, int]], timed: bool) -> None:
    telemetry = Telemetry("s" * 999 + "\ud800", T0, sdk="", bundle="b" * 999)
    for name, number in calls:
        (telemetry.time if timed else telemetry.count)(name, number)
    report = telemetry.report(T0)
    if report is None:
        assert not calls
        return
    for encode, decode in ((to_msgpack, from_msgpack), (to_json, from_json)):
        assert decode(encode(report), TelemetryReport) == report
    if timed:
        assert sum(t.count for t in report.timings.values()) == len(calls)


def test_a_report_is_bounded_whatever_is_counted() -> None:
    telemetry = Telemetry("s", T0)
    for i in range(10 * NAMES_MAX):
        telemetry.count(f"n{i}", COUNT_MAX + 1)
        telemetry.time(f"n{i}", 1 << 62)
    report = reported(telemetry)
    assert len(report.counters) == len(report.timings) == NAMES_MAX
    assert report.timings[OTHER].count == 9 * NAMES_MAX + 1
    assert report.counters[OTHER] == COUNT_MAX
    data = to_msgpack(report)
    assert len(data) < 16_384
    assert from_msgpack(data, TelemetryReport) == report


def test_totals_are_counted_by_what_they_grew() -> None:
    telemetry = Telemetry("s", T0)
    telemetry.merge({"pages": 2, "reranks": 9, "events": 0})
    telemetry.merge({"pages": 3, "reranks": 9, "events": 0})
    assert reported(telemetry).counters == {"pages": 3, "reranks": 9}
    telemetry.merge({"pages": 1, "reranks": 10})  # a new session's pages
    assert reported(telemetry).counters == {"pages": 1, "reranks": 1}
    telemetry.merge({"pages": 1, "reranks": 10})
    assert telemetry.report(T0) is None


def test_a_report_that_was_put_back_is_sent_first_and_unchanged() -> None:
    telemetry = Telemetry("s", T0)
    telemetry.put_back(None)
    telemetry.count("a")
    first = reported(telemetry)
    telemetry.count("b")
    telemetry.put_back(first)
    assert reported(telemetry) is first
    assert reported(telemetry).counters == {"b": 1}


def test_the_oldest_of_too_many_unsent_is_dropped_and_counted() -> None:
    telemetry = Telemetry("s", T0, TelemetryConfig(unsent_max=2))
    made = []
    for name in "abc":
        telemetry.count(name)
        made.append(reported(telemetry))
    for report in made:
        telemetry.put_back(report)
    assert [reported(telemetry) for _ in range(2)] == made[1:]
    assert reported(telemetry).counters == {"reports_dropped": 1}


def test_whole_sessions_are_in_the_sample_or_out_of_it() -> None:
    config = TelemetryConfig(rate=0.2)
    sampled = {s for s in (f"session-{i}" for i in range(5_000)) if Telemetry(s, T0, config).sampled}
    assert 850 < len(sampled) < 1_150
    assert sampled == {s for s in (f"session-{i}" for i in range(5_000)) if Telemetry(s, 0, config).sampled}
    wider = TelemetryConfig(rate=0.4)
    assert all(Telemetry(s, T0, wider).sampled for s in sampled)
    for rate, expected in ((0.0, False), (1.0, True)):
        telemetry = Telemetry("s", T0, TelemetryConfig(rate=rate))
        telemetry.count("a")
        telemetry.time("b", 1)
        telemetry.merge({"c": 1})
        assert telemetry.sampled is expected
        assert (telemetry.report(T0) is not None) is expected
    out = next(s for s in (f"session-{i}" for i in range(99)) if s not in sampled)
    telemetry = Telemetry(out, T0, config)
    telemetry.count("a")
    assert telemetry.report(T0) is None


def test_report_ids_are_unique_even_if_a_session_is_opened_again() -> None:
    ids = set()
    for session, since in (("a", 1), ("a", 2), ("b", 1)):
        telemetry = Telemetry(session, since)
        for _ in range(3):
            telemetry.count("a")
            ids.add(reported(telemetry, since).report_id)
    assert len(ids) == 9


@pytest.mark.parametrize("wrong", [{"rate": -0.1}, {"rate": 1.1}, {"rate": float("nan")}, {"unsent_max": 0}])
def test_configs_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a rate"):
        TelemetryConfig(**wrong)


GOOD: dict[str, Any] = {
    "report_id": "r",
    "since_ms": T0,
    "until_ms": T0,
    "counters": {"reranks": 3},
    "timings": {"rerank": {"count": 2, "sum_us": 9, "max_us": 8, "buckets": [1, 0, 0, 1]}},
}
TIMING: dict[str, Any] = GOOD["timings"]["rerank"]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"report_id": ""}, "$.report_id"),
    ({"report_id": "x" * 65}, "$.report_id"),
    ({"counters": {"a b": 1}}, "$.counters"),
    ({"counters": {"a\n": 1}}, "$.counters"),
    ({"counters": {'a",x="': 1}}, "$.counters"),
    ({"counters": {"a": -1}}, "$.counters[...]"),
    ({"counters": {"a": COUNT_MAX + 1}}, "$.counters[...]"),
    ({"counters": {"a": 1.5}}, "$.counters[...]"),
    ({"counters": {f"n{i}": 1 for i in range(NAMES_MAX + 1)}}, "$.counters"),
    ({"timings": {"a": {**TIMING, "count": 3}}}, "$.timings[...]"),
    ({"timings": {"a": {**TIMING, "sum_us": 7}}}, "$.timings[...]"),
    ({"timings": {"a": {**TIMING, "sum_us": 17}}}, "$.timings[...]"),
    ({"timings": {"a": {**TIMING, "buckets": [-1, 3]}}}, "$.timings[...].buckets[0]"),
    ({"timings": {"a": {**TIMING, "buckets": [2] + [0] * BUCKETS_MAX}}}, "$.timings[...].buckets"),
    ({"sample_rate": 0.0}, "$.sample_rate"),
    ({"sample_rate": 1.5}, "$.sample_rate"),
    ({"tier": "x" * 65}, "$.tier"),
    ({"version": 2}, "$.version"),
]
"""Changes that make a report invalid, and where the error says so."""


@pytest.mark.parametrize(("change", "where"), BAD)
def test_a_report_beyond_its_bounds_is_refused(change: dict[str, Any], where: str) -> None:
    assert from_msgpack(msgspec.msgpack.encode(GOOD), TelemetryReport).counters == {"reranks": 3}
    for encode, decode in ((msgspec.msgpack.encode, from_msgpack), (msgspec.json.encode, from_json)):
        with pytest.raises(ContractError) as caught:
            decode(encode({**GOOD, **change}), TelemetryReport)
        assert caught.value.path.startswith(where)


def test_a_batch_carries_a_report() -> None:
    telemetry = Telemetry("s", T0)
    telemetry.count("a")
    batch = FeedbackBatch(events=(), telemetry=reported(telemetry))
    assert from_msgpack(to_msgpack(batch), FeedbackBatch) == batch
    assert from_json(to_json(batch), FeedbackBatch) == batch
