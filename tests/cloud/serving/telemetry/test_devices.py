from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pocketrank.cloud.pipeline.config import BudgetConfig
from pocketrank.cloud.serving.http.received import as_received
from pocketrank.cloud.serving.telemetry.devices import DeviceTelemetry, DeviceTelemetryConfig
from pocketrank.device.codec import from_msgpack
from pocketrank.device.contract import FeedbackBatch, TelemetryReport
from pocketrank.device.contract.telemetry import BUCKETS_MAX
from pocketrank.device.reports.telemetry import Telemetry
from tests.cloud.events import event
from tests.device.reports.test_telemetry import BAD, GOOD

_BATCH = as_received(FeedbackBatch, BudgetConfig())


def report(report_id: str = "r", counters: dict[str, int] | None = None, **more: Any) -> dict[str, Any]:
    return {"report_id": report_id, "since_ms": 0, "until_ms": 1, "counters": counters or {}, **more}


class Exposed(DeviceTelemetry):
    """Telemetry with a registry of its own."""

    def __init__(self, config: DeviceTelemetryConfig | None = None) -> None:
        self.registry = CollectorRegistry()
        super().__init__(self.registry, config)

    def take(self, telemetry: Any, encode: Callable[[Any], bytes] = msgspec.msgpack.encode) -> None:
        """Count telemetry as a device sends it."""
        self(msgspec.Raw(encode(telemetry)))


def samples(telemetry: Exposed) -> dict[tuple[str, ...], float]:
    """Return the samples by name and label values, parsed from the text format."""
    text = generate_latest(telemetry.registry).decode()
    families = text_string_to_metric_families(text)
    order = ("result", "sample_rate", "tier", "bundle", "name", "le")
    return {
        (s.name.removeprefix("pocketrank_device_"), *(s.labels[label] for label in order if label in s.labels)): s.value
        for f in families
        for s in f.samples
    }


def test_counts_and_timings_of_devices_are_exposed() -> None:
    device, telemetry = Telemetry("s", 0, tier="full", bundle="world/3"), Exposed()
    device.count("model_failed", 2)
    for us in (1, 3, 3, 700, 1 << 40):
        device.time("rerank", us * 1000)
    telemetry.take(device.report(1))
    device.count("model_failed")
    telemetry.take(device.report(2), msgspec.json.encode)
    exposed = samples(telemetry)
    assert exposed["counts_total", "model_failed"] == 3
    assert exposed["reports_total", "accepted", "1", "full", "world/3"] == 2
    buckets = {float(le): exposed["seconds_bucket", "rerank", le] for n, *_, le in exposed if n == "seconds_bucket"}
    assert len(buckets) == BUCKETS_MAX
    assert [buckets[s] for s in (2e-6, 4e-6, 512e-6, 1024e-6, 4.194304, float("inf"))] == [1, 3, 3, 4, 4, 5]
    assert exposed["seconds_count", "rerank"] == 5
    assert exposed["seconds_sum", "rerank"] == pytest.approx(707e-6 + (1 << 32) / 1e6)


def test_a_repeated_report_is_counted_once() -> None:
    telemetry = Exposed(DeviceTelemetryConfig(ids_max=2))
    for report_id in ("a", "a", "b", "a", "c", "b"):
        telemetry.take(report(report_id, {"n": 1}))
    exposed = samples(telemetry)
    assert (exposed["counts_total", "n"], exposed["reports_total", "duplicate", "", "", ""]) == (3, 3)
    telemetry.take(report("a", {"n": 1}))  # too long ago: forgotten
    assert samples(telemetry)["counts_total", "n"] == 4


def test_a_request_without_telemetry_counts_nothing() -> None:
    telemetry = Exposed()
    telemetry(msgspec.Raw())
    telemetry.take(None)
    telemetry.take(None, msgspec.json.encode)
    assert set(samples(telemetry).values()) == {0}


@pytest.mark.parametrize(("change", "where"), BAD)
def test_a_bad_report_is_dropped_and_counted(change: dict[str, Any], where: str) -> None:
    telemetry = Exposed()
    telemetry.take({**GOOD, **change})
    telemetry.take({**GOOD, **change}, msgspec.json.encode)
    exposed = samples(telemetry)
    assert exposed.pop(("reports_total", "bad", "", "", "")) == 2
    assert set(exposed.values()) == {0}


def test_names_and_fleets_are_bounded_except_for_known_names() -> None:
    telemetry = Exposed(DeviceTelemetryConfig(names_max=3, fleets_max=2, names_known=frozenset(["reranks"])))
    timing = {"count": 1, "sum_us": 1, "max_us": 1, "buckets": [1]}
    for i in range(50):
        telemetry.take(report(f"r{i}", {f"n{i}": 1}, timings={f"t{i}": timing}, bundle=f'b{i}"\n', sample_rate=1 / (1 + i)))
    telemetry.take(report("r", {"reranks": 7}))
    exposed = samples(telemetry)
    assert {key[1:]: value for key, value in exposed.items() if key[0] == "counts_total"} == {
        ("n0",): 1, ("n1",): 1, ("n2",): 1, ("other",): 47, ("reranks",): 7,
    }  # fmt: skip
    assert {key[1]: value for key, value in exposed.items() if key[0] == "seconds_count"} == {
        "t0": 1, "t1": 1, "t2": 1, "other": 47,
    }  # fmt: skip
    fleets = {key[2:]: value for key, value in exposed.items() if key[:2] == ("reports_total", "accepted")}
    assert fleets[("other",) * 3] == 50
    assert len(fleets) == 2


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


@given(ANYTHING | st.fixed_dictionaries({key: st.just(value) | ANYTHING for key, value in GOOD.items()}))
def test_no_telemetry_makes_a_request_lose_its_feedback(anything: Any) -> None:
    telemetry = Exposed()
    body = {"events": [msgspec.to_builtins(event(event_id="e"))], "telemetry": anything}
    try:
        batch = from_msgpack(msgspec.msgpack.encode(body), _BATCH)
    except OverflowError:  # an integer that MessagePack does not have
        return
    assert [e.event_id for e in batch.events] == ["e"]
    telemetry(batch.telemetry)  # type: ignore[arg-type]
    reports = sum(value for key, value in samples(telemetry).items() if key[0] == "reports_total")
    assert reports == (anything is not None)


def test_a_report_that_is_too_large_is_not_read() -> None:
    telemetry = Exposed(DeviceTelemetryConfig(bytes_max=200))
    telemetry.take(report("a", {"n": 1}))
    telemetry.take(report("b", {"n": 1}, more="x" * 200))
    exposed = samples(telemetry)
    assert (exposed["counts_total", "n"], exposed["reports_total", "bad", "", "", ""]) == (1, 1)


def test_reports_from_several_threads_add_up() -> None:
    telemetry = Exposed()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: telemetry.take(report(str(i // 2), {"n": 1})), range(400)))
    exposed = samples(telemetry)
    assert (exposed["counts_total", "n"], exposed["reports_total", "duplicate", "", "", ""]) == (200, 200)
    assert from_msgpack(msgspec.msgpack.encode(report()), TelemetryReport).counters == {}
