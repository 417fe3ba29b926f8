"""Devices of two split versions at one server, and a store of vectors that fails and recovers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.pages.engine import fill_stores
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.published.onnx_ranker import History
from pocketrank.cloud.serving.routes.health import HealthConfig
from pocketrank.cloud.training.run import Run
from pocketrank.device.codec import read_page
from pocketrank.device.contract import FeedbackBatch, FeedbackEvent, FeedbackReceipt, Page
from tests.cloud.events import event
from tests.cloud.serving.live import Live, live, piped, request, until
from tests.cloud.small_published import SPLIT_VERSION, TOWER_HISTORY_MAX, SmallRun, small_run
from tests.valkey import ValkeyServer, valkey_server

OLD = "0ld"
NEW_ITEM = 1000 + 3 * 55
"""An item that the old version does not know."""


@dataclass(frozen=True)
class Site:
    """A server of the run `new` that still answers devices of `old`, which knew fewer items and users."""

    new: SmallRun
    old: SmallRun
    server: Live

    def page(self, user: int, version: str, **more: object) -> Page:
        page = self.server.ask("/v1/page", request(user, 60, split_version=version, **more), Page)
        read_page(page)
        return page

    def expected(self, version: str, user: int, *events: FeedbackEvent) -> np.ndarray:
        """The user's vector, of the served run's knowledge of the user's past, in numpy."""
        states = UserStates(self.new.published, self.new.record)
        states.apply(events)
        latest, run = slice(-TOWER_HISTORY_MAX, None), self.new if version == SPLIT_VERSION else self.old
        item, feedback = (column[latest] for column in states(user).history)
        at = _positions(run, self.new.published.item_id[item])
        known = at > 0
        names = (*HISTORY_FEEDBACK, *self.new.record.actions)
        own = (*HISTORY_FEEDBACK, *run.record.actions)
        feedback = np.stack([feedback[:, names.index(n)] if n in names else np.zeros(len(feedback)) for n in own], 1)
        users = run.published.user_id
        place = int(np.flatnonzero(users == user)[0]) if user in users else 0
        return run.expected_vector(place, History(at[known], feedback[known]))


def _positions(run: SmallRun, ids: np.ndarray) -> np.ndarray:
    known = run.published.item_id
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[at] == ids, at, 0)


@contextmanager
def serving(folder: Path, toml: str = "") -> Iterator[Site]:
    new = small_run(folder / "new", actions=("purchase", "gift"))
    old = small_run(folder / "old", items=50, users=5, seed=1, split_version=OLD, actions=("subscribe", "purchase"))
    config = piped(folder, f'[limits]\npage_ms = 60_000.0\nstore_ms = 30_000.0\n{toml}\n[[split]]\nrun = "old"\n')
    with live(new.folder, folder / "feedback.db", config=config) as server:
        yield Site(new, old, server)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(tmp_path_factory.mktemp("splits")) as made:
        yield made


@pytest.mark.parametrize("version", [SPLIT_VERSION, OLD])
@pytest.mark.parametrize("user", [3, 7, 8, 99])  # known to both, to the new one alone, without a past, unknown
def test_each_version_gets_its_own_vectors(site: Site, version: str, user: int) -> None:
    page = site.page(user, version)
    columns, run = read_page(page), site.new if version == SPLIT_VERSION else site.old
    assert (page.split_version, page.split_reason, page.degraded) == (version, None, ())
    at = _positions(run, columns.item_id)
    assert (at == 0).any() == (version == OLD)  # an unknown item has its vector of an unknown item
    np.testing.assert_array_equal(columns.vector, run.published.item_vector[at])
    np.testing.assert_allclose(columns.user_vector, site.expected(version, user), rtol=2e-3, atol=2e-3)


def test_the_page_itself_does_not_depend_on_the_version(site: Site) -> None:
    new, old, none = (read_page(site.page(3, version)) for version in (SPLIT_VERSION, OLD, "nobody's"))
    for other in (old, none):
        np.testing.assert_array_equal(other.item_id, new.item_id)
        np.testing.assert_array_equal(other.floats, new.floats)
    assert not np.allclose(new.vector[:5], old.vector[:5])  # so the test above can fail


def test_feedback_moves_the_vector_of_each_version_by_what_it_knows(site: Site) -> None:
    user, events = (
        4,
        (
            event(4, 1030, ms=1, watch_ms=20_000),
            event(4, NEW_ITEM, ms=2, like=True),
            event(4, 1033, ms=3, actions=("purchase",)),
        ),
    )
    receipt = site.server.ask("/v1/feedback", FeedbackBatch(events=events), FeedbackReceipt)
    assert receipt.accepted == 3
    for version in (SPLIT_VERSION, OLD):
        vector = read_page(site.page(user, version)).user_vector
        np.testing.assert_allclose(vector, site.expected(version, user, *events), rtol=2e-3, atol=2e-3)
        assert not np.allclose(vector, site.expected(version, user), rtol=2e-3, atol=2e-3)


def test_an_unknown_version_gets_none_and_the_reason(site: Site) -> None:
    counted = 'pocketrank_pages_without_vectors_total{reason="unknown"}'
    before = site.server.metric(counted)
    page = site.page(3, "n3w3r")
    assert (page.candidates.vector, page.user_vector, page.split_version) == (None, None, None)
    assert page.split_reason == "unknown split version n3w3r"
    assert site.server.metric(counted) - before == 1
    assert site.server.send("GET", "/healthz").json()["split_versions"] == [OLD, SPLIT_VERSION]


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with valkey_server() as server:
        yield server


def test_while_the_store_is_unavailable_pages_lack_vectors_and_nothing_else(valkey: ValkeyServer, tmp_path: Path) -> None:
    new, health = small_run(tmp_path / "new"), HealthConfig(cache_s=0.0)
    old = small_run(tmp_path / "old", items=50, users=5, seed=1, split_version=OLD)
    toml = f'[limits]\npage_ms = 60_000.0\nstore_ms = 30_000.0\n[store]\nurl = "{valkey.url}"\n[[split]]\nrun = "old"\n'
    config = piped(tmp_path, toml, health=health)
    with live(new.folder, tmp_path / "feedback.db", config=config) as server:
        site = Site(new, old, server)

        def readiness() -> dict[str, object]:
            answer = server.send("GET", "/readyz")
            assert answer.status == 200  # in service in any case
            report: dict[str, object] = answer.json()
            return report

        def whole(version: str) -> bool:
            page = site.page(3, version)
            return page.candidates.vector is not None and page.degraded == ()

        assert whole(SPLIT_VERSION)
        assert whole(OLD)
        assert readiness() == {
            "status": "ready",
            "checks": {"feedback_log": "ok", "feedback_records": "ok", "event_log": "ok", "store": "ok", "stages": "ok"},
        }
        valkey.kill()
        for version in (SPLIT_VERSION, OLD):
            for user, degraded in ((3, "no_user_vector"), (8, "no_vectors")):
                page = site.page(user, version)
                assert degraded in page.degraded
                assert (page.candidates.vector, page.user_vector, page.split_version) == (None, None, None)
                assert page.split_reason == "vectors are temporarily unavailable"
                assert len(read_page(page).item_id) > 0
        assert readiness() == {
            "status": "degraded",
            "checks": {"feedback_log": "ok", "feedback_records": "ok", "event_log": "ok", "store": "failed", "stages": "ok"},
        }
        assert server.metric('pocketrank_pages_without_vectors_total{reason="unavailable"}') == 4
        assert server.metric('pocketrank_degraded_total{reason="no_vectors"}') >= 2
        valkey.restart()  # empty
        assert site.page(3, SPLIT_VERSION).candidates.vector is None
        fill_stores(Run.open(new.folder), config)
        for version in (SPLIT_VERSION, OLD):
            until(lambda version=version: whole(version), f"vectors of {version}")  # type: ignore[misc]
        np.testing.assert_allclose(read_page(site.page(3, OLD)).user_vector, site.expected(OLD, 3), rtol=2e-3, atol=2e-3)
        assert readiness()["status"] == "ready"
