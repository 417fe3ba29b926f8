"""The demo's bundle on a device that trusts only the demo's key, through a real server process."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pocketrank.device import (
    BundleStore,
    CloudClient,
    DeviceState,
    DeviceStore,
    Ended,
    FeedSession,
    Impression,
    TrustedKeys,
    Updates,
)
from pocketrank.device.bundle.files import SignatureError
from pocketrank.export.signing import generate_key, last_release
from pocketrank.sdk_demo.demo import BUNDLE, KEY, RELEASE_DAYS, RUN
from tests.sdk_demo.conftest import EARLIER_SERIAL, SmallDemo
from tests.test_docs import blocks

README = Path(__file__).parents[2] / "README.md"

SERVE = "import sys; sys.modules.update(torch=None, pyarrow=None); from pocketrank.sdk_demo.cli import main; main()"


@contextmanager
def served(demo: Path, feedback_db: Path) -> Iterator[str]:
    """The command line that the demo prints, on a free port; the value is the URL."""
    options = ["--run", str(demo / RUN), "--bundle", str(demo / BUNDLE), "--port", "0", "--feedback-db", str(feedback_db)]
    process = subprocess.Popen([sys.executable, "-c", SERVE, "serve", *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving on http://127.0.0.1:"), line
        yield line.removeprefix("Serving on ").strip()
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def test_a_device_with_the_demos_key_installs_its_bundle_and_reranks(small_demo: SmallDemo, tmp_path: Path) -> None:
    keys = TrustedKeys.one((small_demo.out / f"{KEY}.pub").read_text())
    updates = Updates(BundleStore(tmp_path / "bundles", keys), device_id="7c1e")
    store = DeviceStore(tmp_path / "device.db")
    with served(small_demo.out, tmp_path / "feedback.db") as url, CloudClient(url, timeout_s=30) as cloud:
        assert updates.check(cloud) == "staged"
        session = FeedSession(None, user_id=7, session_id="7-2026-01-31", store=store, updates=updates)
        session.refill(cloud)
        assert len(session.remaining) > 5
        shown = []
        for _ in range(5):
            item = session.next()
            assert item is not None
            impression = Impression(
                item,
                position=session.position - 1,
                user_id=7,
                session_id=session.session_id,
                device=DeviceState(),
                page_id=session.page_id,
            )
            session.feedback(impression.finish(Ended.SWIPE))
            shown.append(item)
    assert len(set(shown)) == 5
    assert session.form == "split"
    assert session.counters.reranks >= 5
    assert session.counters.model_failed == 0
    assert updates.current().serial == EARLIER_SERIAL + 1
    updates.close()
    store.close()


def test_a_device_with_another_key_installs_nothing(small_demo: SmallDemo, tmp_path: Path) -> None:
    other = TrustedKeys.one(generate_key(tmp_path / "key"))
    updates = Updates(BundleStore(tmp_path / "bundles", other), device_id="7c1e")
    with (
        served(small_demo.out, tmp_path / "feedback.db") as url,
        CloudClient(url, timeout_s=30) as cloud,
        pytest.raises(SignatureError),
    ):
        updates.check(cloud)
    assert updates.current().ranker is None


def test_the_release_is_for_all_devices_and_for_months(small_demo: SmallDemo) -> None:
    release = last_release(small_demo.out / BUNDLE)
    assert release is not None
    assert (release.rollout, release.kill, release.revoked) == (100, False, ())
    days = (release.expires_ms - time.time() * 1000) / 86_400_000
    assert RELEASE_DAYS - 1 < days <= RELEASE_DAYS


def test_a_demo_made_again_keeps_its_key_and_raises_the_serial(small_demo: SmallDemo) -> None:
    before = (small_demo.out / "key_before.txt").read_text()
    assert (small_demo.out / f"{KEY}.pub").read_text() == before + "\n"
    assert small_demo.report["public_key"] == before


def test_the_session_of_the_readme_installs_the_bundle_and_reorders(
    small_demo: SmallDemo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The block as it stands, but for the port of the server, and the folders of the demo and of the phone."""
    (block,) = blocks(README.read_text(), "python")
    assert "http://127.0.0.1:8080" in block.code
    phone, demo = str(tmp_path / "phone"), str(small_demo.out)
    namespace: dict[str, object] = {}
    with served(small_demo.out, tmp_path / "feedback.db") as url:
        code = block.code.replace("http://127.0.0.1:8080", url).replace("runs/demo/phone", phone).replace("runs/demo", demo)
        exec(compile(code, str(README), "exec"), namespace)
    session = namespace["session"]
    assert isinstance(session, FeedSession)
    assert (session.form, session.position) == ("split", 6)
    assert session.counters.reranks >= 6
    assert session.counters.no_model == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("showed ")]
    assert len(lines) == 6
    orders = [line.partition("next were ")[2].split(", now are ") for line in lines]
    assert any(planned != now for planned, now in orders), lines
