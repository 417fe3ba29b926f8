"""A running server whose active run changes: a real process, real requests, small published runs."""

import os
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from pocketrank.cloud.published.onnx_ranker import History
from pocketrank.cloud.published.profile import Profile, ProfiledFeature
from pocketrank.cloud.published.published import PublishedError
from pocketrank.cloud.serving.process.serve import serve
from pocketrank.cloud.serving.routes.health import HealthConfig
from pocketrank.cloud.serving.telemetry.features import DriftConfig
from pocketrank.cloud.training.registry import FolderRegistry, RegistryError
from pocketrank.device.codec import from_msgpack, read_page, to_msgpack
from pocketrank.device.contract import FeedbackBatch, FeedbackReceipt, Page
from tests.cloud.events import event
from tests.cloud.serving.live import MSGPACK, Live, live, piped, request, until, write_bundle
from tests.cloud.serving.process.test_several_workers import children
from tests.cloud.small_published import TOWER_HISTORY_MAX, SmallRun, small_run

WARM_UP, SWITCHES = 5, 10
"""Switches to another run and back: until memory no longer grows, and while it must not."""
KEEPS = """
from pocketrank.cloud.pipeline.stage import Stage

class Keeps(Stage):
    def __init__(self, config, resources):
        super().__init__(config, resources)
        self.me = self

    def __call__(self, query, candidates):
        return candidates
"""
NO_LIMITS = "[limits]\npage_ms = 60_000\nqueue_ms = 60_000\n"
"""No page is late or refused because the machine has other things to do."""


class Runs:
    """A folder of small runs `a`, `b` and `c`, whose items overlap."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.registry = folder, FolderRegistry(folder)
        self.by_name = {
            name: small_run(folder / name, seed=seed, split_version=name * 5, first_item=1000 + 30 * seed)
            for seed, name in enumerate("abc")
        }
        self.registry.activate("a")

    def run_of(self, page: Page, user: int) -> str:
        """Return the run that everything on the page is from; fail when there is none. The user has sent no feedback."""
        (name,) = [name for name, run in self.by_name.items() if _is_of(page, user, run)]
        if page.split_version is not None:
            _check_vectors(page, user, self.by_name[name], self.by_name[page.split_version[0]])
        return name


def _is_of(page: Page, user: int, run: SmallRun) -> bool:
    view, published = read_page(page), run.published
    at = np.searchsorted(published.item_id, view.item_id)
    if not (at < len(published.item_id)).all() or not np.array_equal(published.item_id[at], view.item_id):
        return False
    named = dict(zip(page.candidates.floats.names, view.floats.T, strict=True))
    pxtr = run.expected_pxtr(user, _history(run, user), at, scene_code=1, hour_code=1 + 22)
    return (
        np.array_equal(named["duration_ms"], published.item_float[at, 0])
        and np.array_equal(view.categories, published.item_category[at])
        and np.allclose(np.stack([named["pxtr_long_view"], named["pxtr_like"]], 1), pxtr, rtol=1e-3, atol=1e-5)
    )


def _history(run: SmallRun, user: int) -> History:
    known = run.published.history_item[user] > 0
    return History(run.published.history_item[user][known].astype(np.int64), run.published.history_feedback[user][known])


def _check_vectors(page: Page, user: int, served: SmallRun, lower: SmallRun) -> None:
    """Check that the vectors are those of the lower half of `lower`, of the user's history in the run `served`."""
    view, published = read_page(page), lower.published
    at = _known(lower, view.item_id)
    np.testing.assert_array_equal(view.vector, published.item_vector[at])
    history = _history(served, user)
    past = _known(lower, served.published.item_id[history.item[-TOWER_HISTORY_MAX:]])
    feedback = history.feedback[-TOWER_HISTORY_MAX:][past > 0]
    expected = lower.expected_vector(user, History(past[past > 0], feedback))
    np.testing.assert_allclose(view.user_vector, expected, rtol=2e-3, atol=2e-3)


def _known(run: SmallRun, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions of items in a run, 0 for those that it does not know."""
    at = np.searchsorted(run.published.item_id, ids).clip(max=len(run.published.item_id) - 1)
    return np.where(run.published.item_id[at] == ids, at, 0)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


@contextmanager
def serving(runs: Runs, tmp_path: Path, bundle: Path | None = None, *, stages: str = "", **more: object) -> Iterator[Live]:
    config = piped(tmp_path / "pipeline", NO_LIMITS + stages, registry_check_s=0.02, **more)
    with live(runs.folder, runs.folder / "feedback.db", bundle, config=config, stderr=tmp_path / "log") as server:
        yield server


def served(server: Live) -> str:
    return str(server.send("GET", "/healthz").json()["run"])


class Phones:
    """Phones that ask for pages all the time, in threads."""

    def __init__(self, port: int, runs: Runs, *, count: int = 4) -> None:
        self._port, self._runs, self._stopped = port, runs, Event()
        self.runs_seen: Counter[str] = Counter()
        self.lost = 0
        """Requests whose connection was closed, which are sent again."""
        self._pool = ThreadPoolExecutor(count)
        self._jobs = [self._pool.submit(self._ask, number) for number in range(count)]

    def _ask(self, number: int) -> list[str]:
        connection, seen = HTTPConnection("127.0.0.1", self._port, timeout=30), list[str]()
        while not self._stopped.is_set():
            user, version = 1 + (len(seen) + number) % 7, "abc"[len(seen) % 3] * 5
            try:
                connection.request("POST", "/v1/page", to_msgpack(request(user, split_version=version)), MSGPACK)
                response = connection.getresponse()
                status, body = response.status, response.read()
            except (HTTPException, OSError):
                self.lost += 1
                connection.close()
                continue
            assert status == 200, body
            page = from_msgpack(body, Page)
            assert page.degraded == ()
            seen.append(self._runs.run_of(page, user))
            self.runs_seen[seen[-1]] += 1
        connection.close()
        return seen

    def see(self, name: str, count: int = 20) -> None:
        """Wait for more pages of a run."""
        before = self.runs_seen[name]
        until(lambda: self.runs_seen[name] >= before + count or any(job.done() for job in self._jobs), f"pages of {name}")
        if any(job.done() for job in self._jobs):
            self.stop()  # raises what went wrong

    def stop(self) -> list[list[str]]:
        """Return for each phone the runs of its pages; raise what went wrong."""
        self._stopped.set()
        self._pool.shutdown()
        return [job.result() for job in self._jobs]


def test_no_page_fails_or_mixes_two_runs_while_the_active_run_changes(runs: Runs, tmp_path: Path) -> None:
    with serving(runs, tmp_path) as server:
        phones = Phones(server.port, runs)
        for name in "bcab":
            runs.registry.activate(name)
            until(lambda name=name: served(server) == name, f"run {name}")  # type: ignore[misc]
            phones.see(name)
        pages = phones.stop()
        assert phones.lost == 0
        for seen in pages:  # each phone has one connection, and so one worker, which never goes back
            changes = [name for name, next_ in pairwise(seen) if name != next_]
            assert [*changes, seen[-1]] == list("abcab")
        assert server.metric("pocketrank_run_switches_total") == 4
        assert [server.metric(f'pocketrank_served_run{{run="{name}"}}') for name in "abc"] == [0, 1, 0]
        assert server.send("GET", "/readyz").json()["status"] == "ready"
        server.process.terminate()
        assert server.process.wait(30) == 0


def test_the_inputs_of_pages_are_counted_for_the_run_that_is_served(runs: Runs, tmp_path: Path) -> None:
    for name in "bc":
        ages = ProfiledFeature.fit("age", "candidate", np.arange(10.0))
        Profile(pages=5, features=(ages,)).save(runs.folder / name / "published")
    with serving(runs, tmp_path, drift=DriftConfig(stride=1)) as server:
        assert server.send("GET", "/drift").status == 404
        for name, pages in (("b", 3), ("c", 1), ("b", 2)):
            runs.registry.activate(name)
            until(lambda name=name: served(server) == name, f"run {name}")  # type: ignore[misc]
            for _ in range(pages):
                server.ask("/v1/page", request(), Page)
            found = server.send("GET", "/drift").json()
            assert (found["run"], found["training"]["pages"], found["serving"]["pages"]) == (name, 5, pages)
            assert server.metric('pocketrank_feature_pages{where="serving"}') == pages
        runs.registry.activate("a")
        until(lambda: served(server) == "a", "run a")
        server.ask("/v1/page", request(), Page)
        assert server.send("GET", "/drift").status == 404


def test_each_worker_follows_also_one_that_replaces_a_killed_one(runs: Runs, tmp_path: Path) -> None:
    with serving(runs, tmp_path, workers=2) as server:
        phones = Phones(server.port, runs, count=1)
        phones.see("a")
        before = children(server.process.pid)
        runs.registry.activate("b")
        os.kill(before[0], signal.SIGKILL)
        phones.see("b")
        until(lambda: len(set(children(server.process.pid)) - set(before)) == 1, "a new worker")
        until(lambda: server.metric('pocketrank_served_run{run="b"}') == 2, "two workers that serve the run b")
        assert server.metric('pocketrank_served_run{run="a"}') == 0
        runs.registry.rollback()
        until(lambda: server.metric('pocketrank_served_run{run="a"}') == 2, "two workers that serve the run a")
        pages = phones.stop()
        assert {seen[-1] for seen in pages} <= {"a", "b"}
        server.process.terminate()
        assert server.process.wait(30) == 0


def test_a_run_that_cannot_be_served_is_refused_and_the_one_before_stays(runs: Runs, tmp_path: Path) -> None:
    damaged = runs.folder / "b" / "published" / "ranker.onnx"
    whole, log = damaged.read_bytes(), tmp_path / "log"
    with serving(runs, tmp_path, health=HealthConfig(cache_s=0)) as server:

        def readiness() -> Any:
            answer = server.send("GET", "/readyz")
            assert answer.status == 200
            return answer.json()

        damaged.write_bytes(whole[:100])
        runs.registry.activate("b")
        until(lambda: readiness()["status"] == "degraded", "a refusal")
        assert readiness()["checks"]["run"] == "failed"
        assert served(server) == "a"
        assert runs.run_of(server.ask("/v1/page", request(3, split_version="aaaaa"), Page), 3) == "a"
        (line,) = [line for line in log.read_text().splitlines() if "can be served" in line and "check run" not in line]
        assert "Expected an ONNX graph" in line
        assert line.endswith(f"at b in {runs.folder}. a is served as before.")
        # Back in one step, and forward again once the run is whole.
        runs.registry.rollback()
        until(lambda: readiness()["status"] == "ready", "readiness")
        damaged.write_bytes(whole)
        runs.registry.activate("b")
        until(lambda: served(server) == "b", "run b")
        assert readiness()["status"] == "ready"
        # A list of activations that cannot be read changes nothing.
        path = runs.folder / "active.json"
        text = path.read_bytes()
        path.write_bytes(text[:30])
        until(lambda: readiness()["status"] == "degraded", "a refusal")
        assert served(server) == "b"
        path.write_bytes(text)
        until(lambda: readiness()["status"] == "ready", "readiness")


def test_a_run_whose_pages_lack_columns_of_the_one_before_is_refused(runs: Runs, tmp_path: Path) -> None:
    record = msgspec.structs.replace(runs.by_name["b"].record, float_names=("duration_ms", "other"))
    (runs.folder / "b" / "published" / "published.json").write_bytes(msgspec.json.encode(record))
    with serving(runs, tmp_path) as server:
        runs.registry.activate("b")
        log = tmp_path / "log"
        until(lambda: "got none of age_days" in log.read_text(), "a refusal")
        assert served(server) == "a"


def test_a_server_starts_with_the_last_run_that_can_be_served(runs: Runs, tmp_path: Path) -> None:
    runs.registry.activate("b")
    runs.registry.activate("c")
    (runs.folder / "c" / "published" / "item_row.npy").unlink()
    with serving(runs, tmp_path, health=HealthConfig(cache_s=0)) as server:
        assert served(server) == "b"
        until(lambda: server.send("GET", "/readyz").json()["status"] == "degraded", "a refusal")
        assert server.send("GET", "/healthz").json()["split_versions"] == ["aaaaa", "bbbbb"]


def test_without_a_run_that_can_be_served_the_server_says_why(runs: Runs, tmp_path: Path) -> None:
    (runs.folder / "a" / "published" / "item_row.npy").unlink()
    with pytest.raises(PublishedError, match=r"item_row\.npy"):
        serve(runs.registry, None, port=0)
    with pytest.raises(RegistryError, match="`pocketrank runs activate RUN` chooses one"):
        serve(FolderRegistry(tmp_path), None, port=0)


def test_devices_keep_the_bundle_of_a_former_run_and_its_vectors(runs: Runs, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", {"spec.json": b"{}"}, split_version="aaaaa")
    with serving(runs, tmp_path, bundle) as server:
        assert server.send("GET", "/healthz").json()["split_versions"] == ["aaaaa"]
        runs.registry.activate("b")
        until(lambda: served(server) == "b", "run b")
        assert server.send("GET", "/v1/bundle/manifest.json").status == 200
        assert server.ask("/v1/page", request(3, split_version="aaaaa"), Page).split_version == "aaaaa"
    with serving(runs, tmp_path, bundle) as server:  # also after a restart
        assert served(server) == "b"
        assert server.send("GET", "/healthz").json()["split_versions"] == ["aaaaa", "bbbbb"]


def test_feedback_holds_whichever_run_is_served_when_it_arrives(runs: Runs, tmp_path: Path) -> None:
    """One user sends an event at a time and asks for a page after each, while the active run changes."""
    sent = list[int]()
    with serving(runs, tmp_path) as server:
        for name in "bab":
            runs.registry.activate(name)
            while served(server) != name:
                everything = read_page(server.ask("/v1/page", request(50, 100), Page)).item_id.tolist()
                assert not set(everything) & set(sent)
                item = next((one for one in everything if one >= 1030), None)  # both runs know it
                if item is None:
                    continue
                batch = FeedbackBatch(events=(event(50, item),))
                assert server.ask("/v1/feedback", batch, FeedbackReceipt).accepted == 1
                sent.append(item)
        left = read_page(server.ask("/v1/page", request(50, 100), Page)).item_id.tolist()
        assert set(left) == set(runs.by_name["b"].published.item_id[1:].tolist()) - set(sent)
        assert len(sent) > 3


def test_switches_leak_no_files_threads_or_memory(runs: Runs, tmp_path: Path) -> None:
    def switch(times: int) -> tuple[int, int, int]:
        """Go to b and back so many times; return the numbers of open files and threads, and the memory in bytes."""
        for name in "ba" * times:
            runs.registry.activate(name)
            until(lambda name=name: served(server) == name, f"run {name}")  # type: ignore[misc]
        switches = server.metric("pocketrank_run_switches_total")
        closed = "the run a is served instead of b"
        until(lambda: (tmp_path / "log").read_text().count(closed) == switches / 2, "the end of the last switch")
        process = Path(f"/proc/{server.process.pid}")
        pages = int((process / "statm").read_text().split()[1])
        return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir())), pages * resource.getpagesize()

    # A stage that is called in a thread of its own, and that refers to itself.
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "keeps.py").write_text(KEEPS)
    stages = '[[stage]]\nuse = "retrieve"\n[[stage]]\nuse = "keeps.Keeps"\n'
    with serving(runs, tmp_path, stages=stages) as server:
        files, threads, memory = switch(WARM_UP)
        later_files, later_threads, later_memory = switch(SWITCHES)
        assert later_files - files < SWITCHES, "a look at the registry, and a connection that is just being closed"
        assert later_threads == threads
        assert later_memory - memory < 4 << 20, "a run here takes some 2 MB"
