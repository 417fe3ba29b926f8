from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.cloud.pipeline.config import PipelineConfig
from pocketrank.cloud.retrieval.retrieve import merged
from pocketrank.cloud.vectors.index import AGE_UNKNOWN
from pocketrank.device.codec import read_page
from tests.cloud.events import event
from tests.cloud.serving.live import request
from tests.cloud.serving.pages import pages, stages
from tests.cloud.small_published import SmallRun, small_run

lists = st.lists(st.lists(st.integers(1, 30), unique=True, max_size=12), max_size=4)


@given(lists, st.integers(1, 40))
def test_merging_keeps_order_and_drops_repeats(found: list[list[int]], wanted: int) -> None:
    expected = list(dict.fromkeys(item for one in found for item in one))[:wanted]
    assert merged([np.array(one, np.int64) for one in found], wanted).tolist() == expected


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("run"))


def shown(run: SmallRun, folder: Path, *channels: dict[str, Any], candidates: int = 10, **asked: Any) -> list[int]:
    """Positions of what the channels find, in their order: nothing is ranked."""
    stage = {"use": "retrieve", "candidates": candidates, "channel": channels}
    with pages(run.folder, folder / "feedback.db", PipelineConfig(stage=(stage,))) as made:
        page = made(request(**{"user_id": 6, "size": 60, **asked}))
        return np.searchsorted(run.published.item_id, read_page(page).item_id).tolist()  # type: ignore[no-any-return]


def test_each_channel_gives_its_quota_in_the_order_of_the_file(run: SmallRun, tmp_path: Path) -> None:
    popular = (1 + np.argsort(-run.published.item_popularity[1:], kind="stable")).tolist()
    seen = [int(item) for item in run.published.history_item[6] if item]
    fresh = [item for item in range(60, 0, -1) if item not in seen]
    popular = [item for item in popular if item not in seen]
    found = shown(run, tmp_path, {"use": "fresh", "quota": 3}, {"use": "popular", "quota": 7})
    assert found[:3] == fresh[:3]
    assert found == list(dict.fromkeys([*fresh[:3], *popular[:7], *fresh]))[:10]


def test_a_cold_user_has_quotas_of_its_own(run: SmallRun, tmp_path: Path) -> None:
    channels = {"use": "popular", "quota_cold": 4}, {"use": "two_tower", "quota": 10}
    popular = (1 + np.argsort(-run.published.item_popularity[1:], kind="stable")).tolist()
    assert shown(run, tmp_path, *channels, user_id=0)[:4] == popular[:4]
    warm = shown(run, tmp_path, *channels, user_id=6)
    assert warm == shown(run, tmp_path, {"use": "two_tower", "quota": 10}, user_id=6)


def test_room_that_a_channel_leaves_is_filled_by_the_others(run: SmallRun, tmp_path: Path) -> None:
    found = shown(run, tmp_path, {"use": "fresh", "quota": 2}, {"use": "popular"}, candidates=54)
    assert len(found) == len(set(found)) == 54
    found = shown(run, tmp_path, {"use": "popular", "quota": 5}, candidates=60)
    assert len(found) == 60 - 6, "all but what user 6 has seen"


def test_the_nearest_are_those_of_the_users_vector(run: SmallRun, tmp_path: Path) -> None:
    with pages(run.folder, tmp_path / "feedback.db", PipelineConfig(stage=stages())) as made:
        state = made.engine.states(6)
    near = run.published.item_vector.astype(np.float32) @ run.expected_vector(6, state.history)
    near[[0, *state.seen]] = -np.inf
    assert shown(run, tmp_path, {"use": "two_tower", "quota": 10}) == np.argsort(-near)[:10].tolist()


def test_fresh_items_are_the_newest_without_those_of_unknown_age(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    run.published.item_upload_ms[[60, 58, 1]] = AGE_UNKNOWN
    run.save()
    found = shown(run, tmp_path, {"use": "fresh", "quota": 60}, candidates=60, user_id=0)
    assert found == [59, *range(57, 1, -1)]


def test_a_channel_without_a_quota_gives_nothing_but_fills_room(run: SmallRun, tmp_path: Path) -> None:
    channels = {"use": "popular"}, {"use": "fresh", "quota": 4}
    popular = (1 + np.argsort(-run.published.item_popularity[1:], kind="stable")).tolist()
    found = shown(run, tmp_path, *channels, candidates=6, user_id=0)
    assert found == [60, 59, 58, 57, *[item for item in popular if item < 57][:2]]


@pytest.mark.parametrize(("events", "cold"), [(4, True), (5, False)])
def test_a_user_is_cold_below_the_number_of_events_that_the_file_says(
    run: SmallRun, tmp_path: Path, events: int, cold: bool
) -> None:
    channels = {"use": "fresh", "quota": 2, "quota_cold": 0}, {"use": "popular", "quota": 2, "quota_cold": 2}
    seen = [int(item) for item in run.published.history_item[events] if item]
    assert len(seen) == events
    first = next(item for item in range(60, 0, -1) if item not in seen)
    popular = next(i for i in (1 + np.argsort(-run.published.item_popularity[1:], kind="stable")).tolist() if i not in seen)
    assert first != popular
    found = shown(run, tmp_path, *channels, candidates=4, user_id=events)
    assert found[0] == (popular if cold else first)


def test_two_indexes_by_configuration(run: SmallRun, tmp_path: Path) -> None:
    from pocketrank.cloud.vectors.opening import IndexConfig

    stage = {
        "use": "retrieve",
        "candidates": 10,
        "channel": ({"use": "two_tower", "index": "local", "quota": 5}, {"use": "two_tower", "index": "shared", "quota": 10}),
    }
    index = {"local": IndexConfig(kind="exact"), "shared": IndexConfig(kind="qdrant", url=str(tmp_path / "qdrant"))}
    with pages(run.folder, tmp_path / "feedback.db", PipelineConfig(stage=(stage,), index=index)) as made:
        found = read_page(made(request(6, 10))).item_id
    with pages(run.folder, tmp_path / "feedback.db", PipelineConfig(stage=stages(10)[:1])) as made:
        assert found.tolist() == read_page(made(request(6, 10))).item_id.tolist()


def test_a_channel_of_ones_own(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    (run.folder / "channels_of_ours.py").write_text(
        "import numpy as np\n"
        "from pocketrank.cloud.retrieval import Channel\n\n"
        "class Editors(Channel):\n"
        "    def __call__(self, query, k):\n"
        "        picked = np.array([7, 5, 3])\n"
        "        return picked[~np.isin(picked, query.exclude)][:k]\n"
    )
    found = shown(run, tmp_path, {"use": "channels_of_ours.Editors", "quota": 3}, {"use": "popular"}, candidates=5, user_id=0)
    assert found[:3] == [7, 5, 3]
    watched = event(0, int(run.published.item_id[5]))
    found = shown(
        run, tmp_path, {"use": "channels_of_ours.Editors", "quota": 3}, {"use": "popular"}, user_id=0, feedback=(watched,)
    )
    assert found[:2] == [7, 3]
