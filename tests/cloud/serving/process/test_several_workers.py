"""The whole server with two workers. Each is asked over its own connection, and known by the request ids that it makes."""

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.device.codec import from_block, from_msgpack, to_msgpack
from pocketrank.device.contract import FeedbackBatch, FeedbackReceipt, Page, PageRequest
from tests.cloud.events import event
from tests.cloud.serving.live import MSGPACK, Live, request, started, until
from tests.cloud.small_published import SmallRun, small_run

_SCRIPT = """
import sys
from pathlib import Path
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.serving.process.serve import serve
from pocketrank.cloud.training.run import Run
run, db = map(Path, sys.argv[1:])
config = ServingConfig(workers=2)
if (run / "pipeline.toml").exists():
    from pocketrank.cloud.pipeline.config import PipelineConfig
    config = ServingConfig(workers=2, pipeline=PipelineConfig.open(run / "pipeline.toml"), folder=run, hung_s=0.5)
serve(Run.open(run), None, port=0, feedback_db=db, config=config)
"""
_HANGS = """
from threading import Event
from pocketrank.cloud.pipeline.stage import Stage

class Hangs(Stage):
    def __call__(self, query, candidates):
        if query.request.scene == 1:
            Event().wait()
        return candidates
"""
_TRIES = 1200


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return small_run(tmp_path / "run")


@contextmanager
def serving(run: SmallRun, db: Path) -> Iterator[Live]:
    with started([sys.executable, "-c", _SCRIPT, str(run.folder), str(db)]) as server:
        yield server


class Caller:
    """One connection, and so one worker."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=30)
        self.worker = self._send("GET", "/livez")[1]

    def _send(self, method: str, path: str, body: bytes | None = None) -> tuple[bytes, str]:
        self._connection.request(method, path, body, MSGPACK)
        response = self._connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
        return answer, response.getheader("x-request-id", "").partition("-")[0]

    def close(self) -> None:
        self._connection.close()

    def page(self, user_id: int) -> set[int]:
        """Return the items of a page that holds everything the user has not seen."""
        return items_of(self.asked(request(user_id, 100)))

    def asked(self, request: PageRequest) -> Page:
        return from_msgpack(self._send("POST", "/v1/page", to_msgpack(request))[0], Page)

    def feedback(self, *events: object) -> FeedbackReceipt:
        answer, _ = self._send("POST", "/v1/feedback", to_msgpack(FeedbackBatch(events=events)))  # type: ignore[arg-type]
        return from_msgpack(answer, FeedbackReceipt)

    def metric(self, sample: str) -> float:
        lines = self._send("GET", "/metrics")[0].decode().splitlines()
        return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(sample + " "))


def items_of(page: Page) -> set[int]:
    return set(from_block(page.candidates.item_id, np.dtype("<i8")).tolist())


def callers(port: int) -> list[Caller]:
    """Return a connection to each worker, once both serve."""
    found: dict[str, Caller] = {}
    never = Event()
    for _ in range(_TRIES):
        caller = Caller(port)
        if found.setdefault(caller.worker, caller) is not caller:
            caller.close()
        if len(found) == 2:
            return list(found.values())
        never.wait(0.05)
    raise AssertionError(f"only {found} answered")


def children(pid: int) -> list[int]:
    """Return the process ids of a supervisor's workers."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in found if b"spawn_main" in _command_line(child)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:  # it has just ended
        return b""


def test_feedback_sent_to_one_worker_is_known_to_the_other(run: SmallRun, tmp_path: Path) -> None:
    with serving(run, tmp_path / "feedback.db") as server:
        first, second = callers(server.port)
        unseen = first.page(50)
        assert unseen == second.page(50)
        for number, item in enumerate(sorted(unseen)[:12]):
            sent_to, asked = (first, second) if number % 2 else (second, first)
            sent = event(50, item)
            assert sent_to.feedback(sent).accepted == 1
            unseen.discard(item)
            assert asked.page(50) == unseen  # whichever answers, from the moment of the receipt on
            assert asked.feedback(sent) == FeedbackReceipt(accepted=0, duplicates=1)
        assert first.page(50) == second.page(50) == unseen
        for caller in (first, second):
            assert caller.metric('pocketrank_feedback_events_total{result="accepted"}') == 12
            assert caller.metric('pocketrank_feedback_events_total{result="duplicate"}') == 12
        server.process.terminate()
        assert server.process.wait(30) == 0


def test_a_killed_worker_loses_no_acknowledged_feedback_and_its_successor_knows_it(run: SmallRun, tmp_path: Path) -> None:
    db, acknowledged = tmp_path / "feedback.db", set()
    with serving(run, db) as server:
        first, second = callers(server.port)
        items = sorted(first.page(50))[:8]
        for item in items[:4]:
            for caller in (first, second):
                sent = event(50, item)
                caller.feedback(sent)
                acknowledged.add(sent.event_id)
        before = children(server.process.pid)
        os.kill(before[0], signal.SIGKILL)
        survivor = next(c for c in (first, second) if _answers(c))
        for item in items[4:]:
            sent = event(50, item)
            survivor.feedback(sent)
            acknowledged.add(sent.event_id)
        first, second = callers(server.port)
        assert len(set(children(server.process.pid)) - set(before)) == 1
        assert first.page(50) == second.page(50)
        assert not first.page(50) & set(items)
    log = SqliteFeedbackLog(db)
    kept = Counter(e.event_id for e in log.replay())
    log.close()
    assert set(kept) == acknowledged
    assert set(kept.values()) == {1}


def test_a_worker_whose_stage_hangs_goes_on_and_is_replaced(run: SmallRun, tmp_path: Path) -> None:
    (run.folder / "hangs.py").write_text(_HANGS)
    (run.folder / "pipeline.toml").write_text('[[stage]]\nuse = "retrieve"\n[[stage]]\nuse = "hangs.Hangs"\n')
    with serving(run, tmp_path / "feedback.db") as server:
        first, second = callers(server.port)
        before = children(server.process.pid)
        for scene in (1, 0):
            page = first.asked(request(1, 10, scene=scene))
            assert page.degraded == ("hung_Hangs", "popular")
            assert len(items_of(page)) == 10
        assert second.asked(request(1, 10)).degraded == ()
        until(lambda: len(set(children(server.process.pid)) - set(before)) == 1, "a new worker")
        assert second.asked(request(1, 10)).degraded == ()
        for caller in callers(server.port):
            assert caller.asked(request(1, 10)).degraded == ()
        server.process.terminate()
        assert server.process.wait(30) == 0


def _answers(caller: Caller) -> bool:
    try:
        caller.page(1)
    except OSError:
        return False
    return True
