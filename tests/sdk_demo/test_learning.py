import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketrank.device.codec import from_block
from pocketrank.device.contract import FeedbackBatch, FeedbackEvent, FeedbackReceipt, Page, PageRequest
from tests.cloud.serving.running import Live, started, until
from tests.cloud.training.learned_world import published

_TOML = "[limits]\npage_ms = 60_000\n[filters]\nseen = false\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("learning")
    run = published(folder / "run").parent
    (folder / "pipeline.toml").write_text(_TOML)
    command = [sys.executable, "-m", "pocketrank", "serve", "--run", str(run), "--port", "0", "--learn"]
    with started([*command, "--pipeline", str(folder / "pipeline.toml")]) as running:
        yield running


def use(server: Live, user: int) -> None:
    """Get a page and do something with three of its items."""
    request = PageRequest(request_id=f"r{user}", user_id=user, session_id=f"s{user}", now_ms=1_900_000_000_000, size=10)
    page = server.ask("/v1/page", request, Page)
    items = from_block(page.candidates.item_id)[:3].tolist()
    events = tuple(
        FeedbackEvent(
            event_id=f"{user}-{place}", user_id=user, session_id=f"s{user}", item_id=item, position=place, page_id=page.page_id,
            impression_ms=1_900_000_000_000, watch_ms=60_000, like=True,
        )
        for place, item in enumerate(items)
    )  # fmt: skip
    assert server.ask("/v1/feedback", FeedbackBatch(events=events), FeedbackReceipt).accepted == 3


def parameters(server: Live) -> int:
    return int(server.send("GET", "/healthz").json()["parameters"])


def learner(server: Live) -> int:
    """The process that learns beside the server."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text, command = status.read_text(), (status.parent / "cmdline").read_bytes()
        except OSError:  # it has ended since
            continue
        if f"PPid:\t{server.process.pid}\n" in text and b"learn" in command.split(b"\0"):
            return int(status.parent.name)
    return 0


def test_what_users_do_changes_the_parameters_also_after_a_kill(server: Live) -> None:
    use(server, 10_000_001)
    until(lambda: parameters(server) == 1, "an increment in the server")
    assert server.metric("pocketrank_parameters") == 1
    first = learner(server)
    os.kill(first, signal.SIGKILL)
    use(server, 10_000_002)
    until(lambda: parameters(server) == 2, "an increment of the process that was started again")
    second = learner(server)
    assert second not in (0, first)
    server.process.kill()
    until(lambda: not Path(f"/proc/{second}").exists(), "the process that learns ends when its server is killed")
