import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pocketrank.cloud.serving.telemetry.metrics import ServingMetrics, method_label, route_label
from pocketrank.cloud.serving.telemetry.shared_metrics import SharedMetrics, shared_metrics
from pocketrank.device.contract import FeedbackReceipt

_WORKER = """
import sys
from msgspec import Raw, msgpack
from pocketrank.cloud.serving.telemetry.metrics import ServingMetrics
from pocketrank.cloud.serving.telemetry.devices import DeviceTelemetry
from pocketrank.device.contract import FeedbackReceipt
metrics = ServingMetrics()
devices = DeviceTelemetry(metrics.registry)
for line in sys.stdin:
    order, _, value = line.strip().partition(" ")
    if order == "count":
        for i in range(int(value)):
            metrics.request("/v1/page", "POST", 200, 0.002)
            metrics.stage("mine", 0.0002)
        metrics.feedback(FeedbackReceipt(accepted=int(value), duplicates=1))
        metrics.load(float(value), int(value))
        timing = {"count": 2, "sum_us": 6, "max_us": 3, "buckets": [0, 2]}
        report = {"report_id": value, "since_ms": 0, "until_ms": 1, "counters": {"n": int(value)}, "timings": {"t": timing}}
        devices(Raw(msgpack.encode(report)))
    text = metrics.text()[0].decode()
    print(len(text.splitlines()), flush=True)
    print(text, end="", flush=True)
"""


_SUPERVISOR = """
import sys
from pocketrank.cloud.serving.telemetry.shared_metrics import shared_metrics
with shared_metrics() as shared:
    print(shared.environment(0)["PROMETHEUS_MULTIPROC_DIR"], flush=True)
    sys.stdin.read()
"""


class Worker:
    def __init__(self, shared: SharedMetrics, place: int) -> None:
        environment = {**os.environ, **shared.environment(place)}
        command = [sys.executable, "-c", _WORKER]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, order: str) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(order, file=self.process.stdin, flush=True)
        lines = [self.process.stdout.readline() for _ in range(int(self.process.stdout.readline()))]
        return samples("".join(lines))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def shared() -> Iterator[SharedMetrics]:
    with shared_metrics() as made:
        yield made


def samples(text: str) -> dict[str, float]:
    """Return the samples by name and label values, in the order of the labels' names."""
    return {
        " ".join([s.name.removeprefix("pocketrank_"), *(s.labels[label] for label in sorted(s.labels))]): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_every_observation_is_exposed() -> None:
    metrics = ServingMetrics()
    metrics.request("/v1/page", "POST", 200, 0.003)
    metrics.request("/v1/page", "POST", 503, 0.3)
    for name in ("rank", "my_own.Stage", "rank"):
        metrics.stage(name, 0.0003)
    metrics.stage("append", 0.001, route="/v1/feedback")
    metrics.feedback(FeedbackReceipt(accepted=3, duplicates=2))
    metrics.page(500, 30, None)
    metrics.page(400, 20, "unknown")
    metrics.degraded("cached")
    metrics.shed("queue")
    metrics.shed("queue")
    metrics.load(2.5, 7)
    text, kind = metrics.text()
    exposed = samples(text.decode())
    expected = {
        "requests_total POST /v1/page 200": 1,
        "requests_total POST /v1/page 503": 1,
        "request_seconds_count /v1/page": 2,
        "request_seconds_bucket 0.005 /v1/page": 1,
        "stage_seconds_count /v1/page rank": 2,
        "stage_seconds_count /v1/page my_own.Stage": 1,
        "stage_seconds_count /v1/feedback append": 1,
        "feedback_events_total accepted": 3,
        "feedback_events_total duplicate": 2,
        "candidates_sum retrieved": 900,
        "candidates_count returned": 2,
        "pages_without_vectors_total unknown": 1,
        "pages_without_vectors_total not_asked": 0,
        "degraded_total cached": 1,
        "shed_total queue": 2,
        "compute_price": 2.5,
        "queue_length": 7,
    }
    assert {name: exposed.get(name) for name in expected} == expected
    assert kind.startswith("text/plain")
    assert not [name for name in exposed if "_created" in name]


def test_two_servers_in_a_process_have_separate_metrics() -> None:
    first, second = ServingMetrics(), ServingMetrics()
    first.degraded("popular")
    assert "degraded_total popular" not in samples(second.text()[0].decode())


def test_every_worker_exposes_the_sum_and_a_killed_one_still_counts(shared: SharedMetrics) -> None:
    first, second = Worker(shared, 0), Worker(shared, 1)
    try:
        first("count 3")
        second("count 4")
        expected = {
            "requests_total POST /v1/page 200": 7,
            "request_seconds_count /v1/page": 7,
            "stage_seconds_bucket 0.00025 /v1/page mine": 7,
            "feedback_events_total accepted": 7,
            "feedback_events_total duplicate": 2,
            "device_counts_total n": 7,
            "device_seconds_bucket 2e-06 t": 0,
            "device_seconds_bucket 4e-06 t": 4,
            "device_seconds_count t": 4,
            "device_seconds_sum t": pytest.approx(12e-6),
            "device_reports_total  accepted 1 ": 2,
            "device_reports_total  bad  ": 0,
            "compute_price": 4,  # the highest
            "queue_length": 7,
        }
        for worker in (first, second):
            exposed = worker("show")
            assert {name: exposed.get(name) for name in expected} == expected
        second.kill()
        shared.died(1)
        exposed = first("show")
        assert {name: exposed.get(name) for name in expected} == {**expected, "compute_price": 3, "queue_length": 3}
        second = Worker(shared, 1)
        exposed = second("count 5")
        assert (exposed["requests_total POST /v1/page 200"], exposed["device_seconds_count t"], exposed["queue_length"]) == (
            12,
            6,
            8,
        )
    finally:
        first.kill()
        second.kill()


def test_the_folder_does_not_grow_with_restarts_and_is_removed_at_the_end() -> None:
    with shared_metrics() as shared:
        folder = Path(shared.environment(0)["PROMETHEUS_MULTIPROC_DIR"])
        counts = []
        for _ in range(2):
            worker = Worker(shared, 0)
            exposed = worker("count 1")
            worker.kill()
            counts.append((exposed["requests_total POST /v1/page 200"], len(list(folder.iterdir()))))
            shared.died(0)
        assert [requests for requests, _ in counts] == [1, 2]
        assert counts[0][1] == counts[1][1] > 0
    assert not folder.exists()


@contextmanager
def supervised(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A supervisor in a process of its own, and its folder in the temporary one."""
    command, pipe = [sys.executable, "-c", _SUPERVISOR], subprocess.PIPE
    with subprocess.Popen(command, env=os.environ | {"TMPDIR": str(temporary)}, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.parent == temporary
        try:
            yield process, folder
        finally:
            process.kill()


def test_the_folder_of_a_killed_supervisor_is_removed_once_its_workers_have_ended(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("pocketrank-kept", "kept.metrics", "pocketrank-link.metrics")]
    for other in others[:2]:
        other.mkdir()
        (other / "counter_0.db").touch()
    others[2].symlink_to(others[0])
    with supervised(tmp_path) as (living, kept):
        with supervised(tmp_path) as (killed, left):
            worker = Worker(SharedMetrics(str(left)), 0)
            assert worker("count 1")["requests_total POST /v1/page 200"] == 1
            killed.kill()
            killed.wait()
        with supervised(tmp_path):
            assert worker("count 2")["requests_total POST /v1/page 200"] == 3, "it may go on until it ends"
            worker.kill()
        assert kept.exists()
        assert left.exists()
        with supervised(tmp_path) as (ended, third):
            assert not left.exists()
            ended.communicate()
            assert not third.exists()
        assert living.poll() is None
        living.communicate()
    assert sorted(tmp_path.iterdir()) == sorted(others)
    assert all((other / "counter_0.db").exists() for other in others)


def test_supervisors_that_start_at_once_keep_each_others_folders(tmp_path: Path) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        made = [*pool.map(lambda _: [stack.enter_context(shared_metrics()) for _ in range(25)], range(4))]
        folders = {one.environment(0)["PROMETHEUS_MULTIPROC_DIR"] for some in made for one in some}
        assert len(folders) == 100
        assert {str(path) for path in tmp_path.iterdir()} == folders
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "name"), [("/metrics", "m"), ("/files/a/b", "files"), ("/metrics/", "other"), ("/files", "other"), ("", "other")]
)
def test_paths_have_few_labels(path: str, name: str) -> None:
    assert route_label(path, {"/metrics": "m", "/files/": "files"}) == name


def test_methods_have_few_labels() -> None:
    assert [method_label(name) for name in ("GET", "POST", "BREW", "")] == ["GET", "POST", "other", "other"]


def test_the_folder_of_the_workers_is_for_its_owner_alone() -> None:
    before = os.umask(0)
    try:
        with shared_metrics() as shared:
            assert os.stat(shared.folder).st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_what_cannot_be_read_is_counted_anew_at_each_scrape() -> None:
    metrics, counts = ServingMetrics(), iter((0, 3, 1))
    metrics.watch_unreadable("removed", lambda: next(counts))
    texts = [metrics.text()[0].decode() for _ in range(3)]
    assert [f'pocketrank_unreadable{{source="removed"}} {n}.0\n' in text for n, text in zip((0, 3, 1), texts, strict=True)] == [
        True
    ] * 3
