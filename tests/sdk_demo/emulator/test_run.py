import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketrank.device import Bundle, BundleError, ClientError
from pocketrank.device.network.errors import BadUrlError, UnreachableError
from pocketrank.device.reports.trace import TracePlaceError, read_trace
from pocketrank.sdk_demo.emulator import POLICIES, EmulatorError, PolicyError, WrongWorldError, emulate, play
from pocketrank.sdk_demo.emulator.records import SessionRecord
from pocketrank.sdk_demo.world import WorldConfig
from tests.cloud.serving.live import Live, live, piped
from tests.cloud.small_published import small_run
from tests.sdk_demo.conftest import SmallDemo

ACCEPTED = 'pocketrank_feedback_events_total{result="accepted"}'


@pytest.fixture(scope="module")
def server(small_demo: SmallDemo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("server")
    # With time enough for every page to be whole, also beside other tests: results must not depend on the machine.
    config = piped(folder, "[limits]\npage_ms = 60_000\nqueue_ms = 60_000\nstore_ms = 60_000\n")
    with live(small_demo.out / "run", folder / "feedback.db", small_demo.out / "bundle", config=config) as running:
        yield running


def _url(server: Live) -> str:
    return f"http://127.0.0.1:{server.port}"


def _without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name not in ("latency_ms", "seconds", "clients")}


def test_equal_seeds_bring_equal_results_however_many_phones_and_however_often(
    server: Live, small_demo: SmallDemo
) -> None:  # fmt: skip
    def run(clients: int, seed: int) -> dict[str, Any]:
        report = emulate(_url(server), clients=clients, sessions=50, seed=seed, world=small_demo.world)  # some users twice
        return _without_times(report)

    first, again, other = run(1, 3), run(5, 3), run(5, 4)
    assert first == again
    assert first["policies"] != other["policies"]
    assert first["users"] == 40
    gain = first["gain"]["oracle"]["effective_views_per_session"]
    assert gain["mean"] > 0, "who knows the state shows better items"
    for policy in ("cloud_order", "on_device", "oracle"):
        counters = first["counters"][policy]
        assert counters["events"] == pytest.approx(50 * first["policies"][policy]["items_per_session"])
        assert counters["pages"] == pytest.approx(50 * first["policies"][policy]["requests_per_session"])
        for fallback in ("pages_missing", "split_mismatch", "vectors_bad", "features_bad", "model_failed", "events_bad"):
            assert counters[fallback] == 0
    assert first["counters"]["on_device"]["reranks"] > 0
    assert first["counters"]["cloud_order"]["reranks"] == 0


def test_a_policy_meets_the_same_whoever_else_takes_part(server: Live, small_demo: SmallDemo) -> None:
    alone = emulate(_url(server), clients=2, sessions=10, seed=1, world=small_demo.world, policies=("cloud_order",))
    beside = emulate(
        _url(server), clients=2, sessions=10, seed=1, world=small_demo.world, policies=("oracle", "cloud_order")
    )  # fmt: skip
    assert alone["policies"]["cloud_order"] == beside["policies"]["cloud_order"]
    assert alone["gain"] == {}
    assert alone["split_version"]["phones"] is None


def test_every_policy_can_play(server: Live, small_demo: SmallDemo) -> None:
    report = emulate(_url(server), clients=2, sessions=30, seed=1, world=small_demo.world, policies=tuple(POLICIES))
    told, counters = report["policies"], report["counters"]
    assert list(told) == list(POLICIES)
    assert [name for name in POLICIES if counters[name]["reranks"]] == ["greedy", "beam", "on_device"]
    same = "beam" if Bundle.open(small_demo.out / "bundle").spec.search else "greedy"
    assert told[same] == told["on_device"], "the search that the bundle asks for"
    often, seldom = (
        told[name]["requests_per_session"] / told[name]["items_per_session"] for name in ("refreshed", "cloud_order")
    )
    assert often > seldom
    assert report["gain"]["refreshed"]["uplift_share"]["mean"] != 0, "the cloud ranked again"
    assert not any(of["no_model"] for of in counters.values()), "cloud order is what these policies are for"


def test_feedback_that_is_held_back_reaches_the_cloud_late_and_the_device_at_once(server: Live, small_demo: SmallDemo) -> None:
    def run(delay_s: float) -> dict[tuple[str, int], SessionRecord]:
        before = server.metric(ACCEPTED)
        world = WorldConfig.load(small_demo.world)
        played = play(
            _url(server), sessions=40, seed=2, world=world, policies=("cloud_order", "on_device"), feedback_delay_s=delay_s
        )
        shown = sum(len(r.effective) for r in played.records)
        assert server.metric(ACCEPTED) - before == shown == sum(r.counters.events for r in played.records), "nothing is lost"
        return {(r.policy, r.user_id): replace(r, rerank_ms=[], page_ms=[]) for r in played.records}

    at_once, never = run(0), run(1e6)
    same = {key for key in at_once if at_once[key] == never[key]}
    first_page = {key for key in at_once if at_once[key].requests == 1}
    assert first_page
    assert first_page <= same, "with one page there is nothing that the cloud could learn too late, and the device learned all"
    assert {policy for policy, _ in at_once.keys() - same} == {"cloud_order", "on_device"}, "later pages lack the feedback"


def test_a_bundle_can_be_given(server: Live, small_demo: SmallDemo, tmp_path: Path) -> None:
    def run(bundle: Path | None) -> dict[str, Any]:
        return emulate(
            _url(server), clients=2, sessions=5, seed=1, world=small_demo.world, policies=("on_device",), bundle=bundle
        )

    assert _without_times(run(small_demo.out / "bundle")) == _without_times(run(None))
    with pytest.raises(BundleError):
        run(tmp_path)


def test_a_session_leaves_a_trace_of_why(server: Live, small_demo: SmallDemo, tmp_path: Path) -> None:
    def run() -> dict[str, Any]:
        return emulate(
            _url(server), sessions=2, world=small_demo.world, policies=("on_device", "oracle"), traces=tmp_path / "traces"
        )

    report = run()
    traces = {path.name: list(read_trace(path)) for path in (tmp_path / "traces").iterdir()}
    assert len(traces) == 4
    decisions = [decision for name, found in traces.items() if name.startswith("on_device-") for decision in found]
    assert len(decisions) == 2 * report["policies"]["on_device"]["items_per_session"]
    bundle = Bundle.open(small_demo.out / "bundle").manifest
    assert {decision.bundle for decision in decisions} == {f"{bundle.name}/{bundle.serial}"}
    assert sum(map(len, traces.values())) == len(decisions), "the oracle chooses by itself"
    with pytest.raises(TracePlaceError):
        run()
    (tmp_path / "file").touch()
    with pytest.raises(EmulatorError, match="a folder for traces"):
        play(_url(server), traces=tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"policies": ("best",)},
            PolicyError,
            "some of cloud_order, refreshed, greedy, beam, on_device, informed, oracle, got best",
        ),
        ({"policies": ()}, PolicyError, "got none"),
        ({"sessions": 0}, EmulatorError, "Expected at least 1, got 0 - at sessions"),
        ({"clients": 0}, EmulatorError, "Expected at least 1, got 0 - at clients"),
        ({"seed": -1}, EmulatorError, "Expected at least 0, got -1 - at seed"),
        ({"feedback_delay_s": float("nan")}, EmulatorError, "Expected at least 0, got nan - at feedback_delay_s"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_call(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        play("http://nowhere.invalid", **change)


def test_a_server_that_is_not_there_is_a_typed_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else can take it
        with pytest.raises(UnreachableError, match="GET http://127"):
            emulate(f"http://127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(BadUrlError):
        emulate("localhost:8080")


def test_a_server_of_another_world_is_a_typed_error(tmp_path: Path) -> None:
    with live(small_run(tmp_path).folder, tmp_path / "feedback.db") as other, pytest.raises(WrongWorldError, match="60 items"):
        emulate(_url(other), sessions=1)


def test_a_server_without_a_bundle_is_a_typed_error(small_demo: SmallDemo, tmp_path: Path) -> None:
    with live(small_demo.out / "run", tmp_path / "feedback.db") as bare, pytest.raises(ClientError, match="404"):
        emulate(_url(bare), sessions=1, world=small_demo.world)


def test_a_server_that_dies_half_way_leaves_an_error_and_no_report(small_demo: SmallDemo, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with live(small_demo.out / "run", tmp_path / "feedback.db", small_demo.out / "bundle") as server:
        command = [
            sys.executable,
            "-c",
            "from pocketrank.sdk_demo.cli import main; main()",
            "emulate",
            "--server",
            _url(server),
        ]
        options = ["--world", str(small_demo.world), "--sessions", "100000", "--clients", "3", "--json", str(report)]
        phones = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            pages = 'pocketrank_requests_total{method="POST",route="/v1/page",status="200"}'
            while phones.poll() is None and server.metric(pages) < 20:
                pass
            server.process.kill()
            _, said = phones.communicate(timeout=60)
        finally:
            phones.kill()
            phones.wait()
    assert phones.returncode == 2, said
    last = said.splitlines()[-1]
    assert last.startswith("error: Expected ")
    assert " - at POST http://127.0.0.1" in last
    assert list(tmp_path.glob("report*")) == []


def test_pages_go_on_while_no_feedback_can_be_kept(small_demo: SmallDemo, tmp_path: Path) -> None:
    """The log of feedback is full."""
    with live(small_demo.out / "run", tmp_path / "feedback.db", small_demo.out / "bundle", bytes_max=64 * 1024) as full:
        report = emulate(_url(full), sessions=80, world=small_demo.world, policies=("cloud_order",), clients=1)
        assert full.metric('pocketrank_degraded_total{reason="no_feedback"}') > 1
    assert report["counters"]["cloud_order"]["pages_missing"] == 0
