"""A model of when to ask, from a bundle's manifest to a policy; and what is left of it when it is not one that fits."""

import json
from pathlib import Path

import msgspec
import pytest

from pocketrank.device.bundle.bundle import Bundle, write_manifest
from pocketrank.device.bundle.files import MANIFEST, CorruptBundleError
from pocketrank.device.contract import PagePlan, PagingModel, PagingTerm
from pocketrank.device.paging import FixedPaging, UpliftPaging, paging_of
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.session.session import FeedSession
from tests.device.worlds import SPEC, SPLIT, T0, Clock, make_bundle, make_page

MODEL = PagingModel(
    bias=-0.1,
    terms=(PagingTerm(feature="best", weight=0.4, knot=0.3),),
    plans=(PagePlan(size=30, consume=10, level=-0.01, drop=0.05),),
    simulated=True,
)


def _write(folder: Path) -> None:
    write_manifest(
        folder, name="b", serial=1, split_version=SPLIT, spec=SPEC, models=[], created_ms=T0, paging=MODEL
    )  # fmt: skip


def test_a_bundle_carries_it_and_a_device_asks_by_it(tmp_path: Path) -> None:
    _write(tmp_path)
    model = Bundle.open(tmp_path, now_ms=T0).manifest.paging
    assert model == MODEL
    policy = paging_of(model)
    assert isinstance(policy, UpliftPaging)
    assert policy.model == MODEL


@pytest.mark.parametrize("model", [None, msgspec.structs.replace(MODEL, terms=(PagingTerm(feature="mood", weight=1.0),))])
def test_without_one_that_it_can_follow_a_device_asks_by_counts(model: PagingModel | None) -> None:
    assert isinstance(paging_of(model), FixedPaging)


def test_a_bundle_with_a_model_that_cannot_be_is_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_bytes())
    manifest["paging"]["plans"] = []
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CorruptBundleError, match="at least one plan"):
        Bundle.open(tmp_path, now_ms=T0)


def test_a_session_asks_as_the_bundle_of_now_says_unless_the_app_does(tmp_path: Path) -> None:
    ranker, counts = Ranker.open(make_bundle(tmp_path / "bundle")), FixedPaging(1, 5)
    ranker.paging = MODEL
    own = FeedSession(ranker, user_id=7, session_id="s", clock=Clock(), paging=counts)
    feed = FeedSession(None, user_id=7, session_id="s", clock=Clock())
    asked = [feed.wants_page(), own.wants_page()]
    feed.use(ranker)
    feed.take(make_page([1, 2]))
    own.take(make_page([1, 2]))
    feed.next()
    own.next()
    asked += [feed.wants_page(), own.wants_page()]
    assert [decision.size for decision in asked] == [FixedPaging().size, 5, MODEL.plans[0].size, 5]
