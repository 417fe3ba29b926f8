import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks.errors import BenchmarkError
from benchmarks.serving.__main__ import main, measure_serving, print_report
from benchmarks.serving.by_hand import ByHand
from benchmarks.serving.host import Cores, hosted
from benchmarks.serving.load import Load, LoadOrder
from benchmarks.serving.model import Model
from benchmarks.serving.page_requests import PageRequests
from benchmarks.serving.parts import PEERS
from benchmarks.serving.published import WorldSize, publish_small, publish_world
from benchmarks.serving.rounds import ServingExtent
from pocketrank.cloud.pipeline.config import PipelineConfig
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.published.tower import UserTower
from pocketrank.cloud.training.run import Run
from pocketrank.device.codec import read_page
from tests.cloud.serving.pages import pages
from tests.shared import made_once

SIZE = WorldSize(1_200, users=50, items_per_cluster=100)
EXTENT = ServingExtent(seconds=0.2, rounds=1, connections=2, http_connections=2, items=1_200, sizes=(1_000, 3_000), requests=40)
FIGURES = {"rps", "p50_ms", "p99_ms", "bytes", "cpu_ms", "answers", "others_share", "load_busy"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, _ = made_once(tmp_path_factory, "serving_small", lambda folder: publish_small(folder, SIZE).record.split_version)
    return Run.open(folder)


@pytest.fixture(scope="module")
def run(small: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return publish_world(tmp_path_factory.mktemp("serving") / "run", SIZE, small)


@pytest.fixture(scope="module")
def report(small: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    parts = ("page", "peers", "http", "growth")
    return measure_serving(parts, EXTENT, tmp_path_factory.mktemp("bench"), Console(stderr=True), small)


def _numbers(report: Any) -> Iterator[float]:
    if isinstance(report, dict):
        # two noisy times, so that their difference may be on either side
        report = [
            value for name, value in report.items() if name not in ("ratio_to_model", "ratio_to_model_served", "bytes_per_item")
        ]
    if isinstance(report, list):
        for value in report:
            yield from _numbers(value)
    elif isinstance(report, int | float):
        yield report


def test_every_figure_is_there_and_none_is_absurd(report: dict[str, Any]) -> None:
    assert all(math.isfinite(number) and number >= 0 for number in _numbers(report))
    page = report["page"]
    assert page["with_feedback"].keys() == FIGURES | {"events", "ratio_to_model"}
    assert (page["candidates"], page["returned"], page["with_feedback"]["events"]) == (500, 30, 10)
    assert set(report["peers"]) == set(PEERS)
    servers = [page, page["with_feedback"], report["peers_ours"], *report["peers"].values()]
    for server in [*servers, report["http"]["ours"], report["http"]["raw_asgi"]]:
        assert server.keys() >= FIGURES
        assert server["rps"] > 0
        assert 0 < server["p50_ms"] <= server["p99_ms"]
        assert server["bytes"] > 30 * 64 * 2, "a page has the vectors of all its candidates"
    assert report["model_ms"] > 0
    assert report["ratio_to_model"] == page["cpu_ms"] / report["model_ms"] - 1


def test_ratios_are_of_their_figures(report: dict[str, Any]) -> None:
    best = report["peers"][report["peers_best"]]
    assert best["rps"] == max(peer["rps"] for peer in report["peers"].values())
    assert report["peers_ratio"] == report["peers_ours"]["rps"] / best["rps"]
    http, growth = report["http"], report["growth"]
    assert http["ratio"] == http["ours_rps"] / http["raw_asgi_rps"]
    assert http["ours"]["bytes"] == http["raw_asgi"]["bytes"]
    assert growth["items"] == [1_000, 3_000]
    assert growth["p99_ratio"] == growth["p99_ms"][1] / growth["p99_ms"][0]
    assert growth["bytes_per_item"] == (growth["memory_bytes"][1] - growth["memory_bytes"][0]) / 2_000


def test_the_report_is_told(report: dict[str, Any]) -> None:
    console = Console(record=True, width=140, file=open(os.devnull, "w"))  # noqa: SIM115
    print_report(console, report)
    text = console.export_text()
    for name in (*PEERS, "page, with feedback", "constant page, bare", "page, 3,000 items"):
        assert name in text


def test_a_world_has_the_sizes_asked_for_and_queries_that_meet_their_kind(run: Run) -> None:
    published, record = Published.open(run.published)
    assert (len(published.item_id), len(published.user_id)) == (1_201, 51)
    assert published.item_vector.shape == (1_201, 64)
    assert record.history_max == 50
    assert len(record.tasks) == 6
    assert (published.item_id[1:] > published.item_id[:-1]).all()
    tower = UserTower(run.published, published, record)
    vectors = published.item_vector.astype(np.float32)
    liked, others = [], []
    for user in range(1, 51):
        items = published.history_item[user, -tower.history_max :].astype(np.int64)
        feedback = published.history_feedback[user, -tower.history_max :]
        scores = vectors[1:] @ tower(user, published.item_vector[items], feedback, items > 0)
        liked.append(scores[items - 1].mean())
        others.append(scores.mean())
    assert np.mean(liked) > np.mean(others) + 5 * np.std(others)


def test_peers_make_the_page_that_the_product_makes(run: Run, tmp_path: Path) -> None:
    """With the whole model and lists of their own, which miss some other items of the nearest."""
    by_hand, asking = ByHand(run.published), PageRequests(*Published.open(run.published))
    with pages(run.folder, tmp_path / "feedback.db", PipelineConfig()) as make_page:
        for request in asking.requests(5, feedback=False):
            ours, theirs = make_page(request), by_hand.page(request)
            got, expected = read_page(ours), read_page(theirs)
            assert len(got.item_id) == 30
            assert len(np.intersect1d(got.item_id, expected.item_id)) >= 24
            assert ours.candidates.floats.names == theirs.candidates.floats.names
            _, a, b = np.intersect1d(got.item_id, expected.item_id, return_indices=True)
            np.testing.assert_allclose(got.floats[a], expected.floats[b], atol=2e-5)
            np.testing.assert_array_equal(got.categories[a], expected.categories[b])
            assert got.vector is not None
            assert expected.vector is not None
            np.testing.assert_array_equal(got.vector[a], expected.vector[b])
            assert expected.user_vector is not None
            np.testing.assert_allclose(got.user_vector, expected.user_vector, atol=4e-3)
            columns = by_hand.columns("r", request.user_id, request.exclude, request.now_ms, request.size)
            assert columns["item_id"] == expected.item_id.tolist()
            np.testing.assert_array_equal(np.float32(columns["floats"]), expected.floats)


def test_the_served_model_scores_as_the_whole_one(run: Run) -> None:
    whole, served = (Model(run.published, whole=is_whole) for is_whole in (True, False))
    items = np.arange(1, 501)
    for user in (1, 2, 50):
        np.testing.assert_allclose(served.run(served.inputs(user, items)), whole.run(whole.inputs(user, items)), atol=2e-5)


def test_an_answer_that_is_none_is_counted(run: Run, tmp_path: Path) -> None:
    where, asking = Cores(), PageRequests(*Published.open(run.published))
    probe = asking.msgpack(1)[0]
    with (
        Load(where.load, tmp_path) as load,
        hosted("http_raw", "raw", ("http_raw", str(run.folder)), where.server, probe, tmp_path) as raw,
        hosted("http_ours", "ours", ("http_ours", str(run.folder)), where.server, probe, tmp_path) as ours,
    ):
        wrong = load.file([probe.replace(b"application/msgpack", b"application/nothing")])
        refused = load(LoadOrder(port=ours.port, requests=wrong, connections=2, seconds=0.1))
        assert refused.answers == 0
        assert refused.errors > 0
        assert refused.first_error is not None
        assert "415" in refused.first_error
        few = load.file(asking.msgpack(3))
        ran_out = load(LoadOrder(port=raw.port, requests=few, connections=2, seconds=5, in_order=True))
        assert (ran_out.answers, ran_out.errors) == (3, 0), "a round ends early when its requests do"
        assert all(pid in host.pids for host in (raw, ours) for pid in (host.process.pid,))
    assert not any(Path(f"/proc/{host.process.pid}").exists() for host in (raw, ours))


def test_a_server_that_does_not_start_is_told(run: Run, tmp_path: Path) -> None:
    with (
        pytest.raises(BenchmarkError, match="expected one of ours"),
        hosted("none", "none", ("none", str(run.folder)), Cores().server, b"", tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--seconds", "0"], "--seconds"), (["--rounds", "0"], "--rounds"), (["--sizes", "2000", "1000"], "--sizes")],
)
def test_wrong_options_are_one_line(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options) == 2
    assert told in capsys.readouterr().err
