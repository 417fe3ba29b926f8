"""The pipeline over a small run: what each step of the ladder shows, and what holds on all of them."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from pocketrank.cloud.pipeline.cached import CacheConfig
from pocketrank.cloud.pipeline.config import BudgetConfig, PipelineConfig
from pocketrank.cloud.pipeline.filters import FiltersConfig
from pocketrank.cloud.pipeline.watchdog import HungError
from pocketrank.device.codec import read_page
from pocketrank.device.contract import Page
from tests.cloud.events import event
from tests.cloud.serving.live import request, until
from tests.cloud.serving.pages import Pages, SeenPages, pages, stages
from tests.cloud.small_published import SmallRun, small_run

Make = Callable[..., Pages]

_STAGES = '''
from dataclasses import replace

import numpy as np

from threading import Event

from pocketrank.cloud.pipeline import OutOfTimeError, Stage, StageConfig
from pocketrank.cloud.ranking.rank import Rank, RankConfig
from pocketrank.cloud.retrieval.channels import Channel


class BoostConfig(StageConfig, frozen=True, kw_only=True):
    author: int
    by: float = 2.0


class Boost(Stage):
    Config = BoostConfig

    def __call__(self, query, candidates):
        mine = self.resources.catalogue.author[candidates.item] == self.config.author
        score = (candidates.score * np.where(mine, self.config.by, 1.0)).astype(np.float32)
        return replace(candidates, score=score).take(np.argsort(-score, kind="stable"))


class FailsFor(Stage):
    """Fails, or has no time, for users from 5 on once they have seen something."""

    class Config(StageConfig, frozen=True, kw_only=True):
        how: str

    def __call__(self, query, candidates):
        if query.request.scene == 1:
            raise OutOfTimeError if self.config.how == "time" else RuntimeError("a mistake")
        return candidates


class Hangs(Stage):
    """Does not end in scene 1 before it may."""

    may = Event()

    def __call__(self, query, candidates):
        if query.request.scene == 1:
            self.may.wait(30)
        return candidates


class HangingRule(Hangs):
    on_every_page = True


class HangingChannel(Channel):
    def __call__(self, query, k):
        if query.request.scene == 1:
            Hangs.may.wait(30)
        return np.arange(1, k + 1)


class FailingRule(FailsFor):
    on_every_page = True


class SlowRank(Rank):
    """Takes each candidate to need this long, in scene 1."""

    class Config(RankConfig, frozen=True, kw_only=True):
        seconds: float

    def __call__(self, query, candidates):
        self.seconds_each = self.config.seconds if query.request.scene == 1 else 0.0
        return super().__call__(query, candidates)


class Reverse(Stage):
    on_every_page = True

    def __call__(self, query, candidates):
        return candidates.take(np.arange(len(candidates))[::-1])


class Note(Stage):
    """Notes the whole hours that are left, and the number of candidates."""

    on_every_page = True

    def __call__(self, query, candidates):
        query.degraded.append(f"{query.deadline.left() / 3600:.0f} h, {len(candidates)}")
        return candidates


class Closing(Stage):
    def __call__(self, query, candidates):
        return candidates

    def close(self):
        (self.resources.folder / "closed").touch()
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    run = small_run(tmp_path_factory.mktemp("run"))
    (run.folder / "ours.py").write_text(_STAGES)
    return run


@pytest.fixture
def seen() -> SeenPages:
    return SeenPages()


@pytest.fixture
def make(run: SmallRun, tmp_path: Path, seen: SeenPages) -> Iterator[Make]:
    with ExitStack() as stack:

        def made(*more: dict[str, Any], first: tuple[dict[str, Any], ...] | None = None, **tables: Any) -> Pages:
            config = PipelineConfig(stage=(*(first or stages()), *more), **tables)
            return stack.enter_context(pages(run.folder, tmp_path / "feedback.db", config, observer=seen))

        yield made


def ids(page: Page) -> list[int]:
    read_page(page)
    return read_page(page).item_id.tolist()  # type: ignore[no-any-return]


def pxtr(page: Page) -> np.ndarray:
    return read_page(page).floats[:, :2]


# ------------------------------------------------------------------------------------------------------------- own stages


def test_a_stage_of_ones_own_goes_in_by_its_dotted_name(run: SmallRun, make: Make, seen: SeenPages) -> None:
    plain = make()(request(6, 20))
    authors = run.published.item_author[np.searchsorted(run.published.item_id, ids(plain))]
    last = int(authors[-1])
    page = make({"use": "ours.Boost", "author": last, "by": 100.0})(request(6, 20))
    first = run.published.item_author[np.searchsorted(run.published.item_id, ids(page))]
    count = int((authors == last).sum())
    assert (first[:count] == last).all()
    assert sorted(ids(page)) == sorted(ids(plain))
    assert seen.stages[-7:] == ["state", "tower", "retrieve", "rank", "fuse", "Boost", "assemble"]


def test_stages_are_closed_with_the_pipeline_and_imported_once(run: SmallRun, tmp_path: Path) -> None:
    config = PipelineConfig(stage=(*stages(), {"use": "ours.Closing"}))
    with pages(run.folder, tmp_path / "feedback.db", config), pages(run.folder, tmp_path / "feedback.db", config):
        assert not (run.folder / "closed").exists()
    assert (run.folder / "closed").exists()
    assert sys.path.count(str(run.folder)) == 1


def test_a_stage_has_its_own_deadline_and_the_next_one_the_pages_again(make: Make) -> None:
    own = {"use": "ours.Note", "deadline_ms": 5 * 3.6e6}
    late = {"use": "ours.Note", "deadline_ms": 500 * 3.6e6}
    made = make(own, {"use": "ours.Note"}, late, limits=BudgetConfig(page_ms=90 * 3.6e6))
    assert made(request(6)).degraded == ("5 h, 20", "90 h, 20", "90 h, 20")


def test_without_time_a_rule_runs_and_another_stage_does_not(make: Make) -> None:
    rule = {"use": "ours.Note", "deadline_ms": 0.0}
    assert make(rule)(request(6)).degraded == ("-0 h, 20",)
    stage = {"use": "ours.Boost", "author": 1, "deadline_ms": 0.0}
    assert make(stage)(request(6)).degraded == ("popular",)


def test_the_times_of_all_stages_do_not_overlap(make: Make, seen: SeenPages) -> None:
    made = make()
    started = perf_counter()
    page = made(request(6, 15))
    assert sum(seen.seconds) <= perf_counter() - started
    assert seen.stages == ["state", "tower", "retrieve", "rank", "fuse", "assemble"]
    assert seen.pages == [(20, 15, None)]
    assert len(ids(page)) == 15


# ------------------------------------------------------------------------------------------------------------- the ladder


def test_a_page_in_time_is_whole(make: Make, seen: SeenPages) -> None:
    assert make()(request(6)).degraded == ()
    assert seen.reasons == []


@pytest.mark.parametrize("how", ["time", "mistake"])
def test_a_stage_that_cannot_is_replaced_by_the_last_ranking_without_what_was_seen_since(make: Make, how: str) -> None:
    made = make({"use": "ours.FailsFor", "how": how})
    whole = made(request(6, 20))
    watched = ids(whole)[2]
    failed = () if how == "time" else ("failed_FailsFor",)
    page = made(request(6, 10, scene=1, feedback=(event(6, watched),)))
    assert page.degraded == (*failed, "cached_ranking")
    assert ids(page) == [item for item in ids(whole) if item != watched][:10]
    assert page.candidates.vector is not None
    np.testing.assert_array_equal(pxtr(page)[:2], pxtr(whole)[:2])


def test_without_a_last_ranking_there_are_popular_items_without_probabilities(
    run: SmallRun, make: Make, seen: SeenPages
) -> None:
    made = make({"use": "ours.FailsFor", "how": "time"}, cache=CacheConfig(users=0))
    made(request(6, 10))
    page = made(request(6, 10, scene=1))
    assert page.degraded == ("popular",) == tuple(seen.reasons)
    assert np.isnan(pxtr(page)).all()
    popularity = run.published.item_popularity[np.searchsorted(run.published.item_id, ids(page))]
    assert (np.diff(popularity) <= 0).all()
    assert ids(made(request(7, 10, scene=1, exclude=tuple(ids(page)[:3])))) != ids(page)


def test_the_last_ranking_is_of_the_user_and_the_experiment(make: Make) -> None:
    made = make({"use": "ours.FailsFor", "how": "time"})
    made(request(6, 10))
    for other in ({"user_id": 5}, {"experiment": "a"}):
        assert made(request(**{"user_id": 6, "size": 10, "scene": 1, **other})).degraded == ("popular",)
    assert made(request(6, 10, scene=1)).degraded == ("cached_ranking",)


def test_a_ranking_of_an_experiment_is_for_that_experiment(make: Make) -> None:
    made = make({"use": "ours.FailsFor", "how": "time"})
    made(request(6, 10, experiment="a"))
    assert made(request(6, 10, scene=1)).degraded == ("popular",)
    assert made(request(6, 10, scene=1, experiment="a")).degraded == ("cached_ranking",)


def test_candidates_without_a_fused_score_are_no_ranking(make: Make) -> None:
    made = make({"use": "ours.FailsFor", "how": "time"}, first=stages()[:1])
    assert made(request(6, 10)).degraded == ()
    assert made(request(6, 10, scene=1)).degraded == ("popular",)


def test_a_last_ranking_that_just_fills_the_page_is_used(make: Make) -> None:
    made = make({"use": "ours.FailsFor", "how": "time"})
    whole = ids(made(request(6, 20)))
    page = made(request(6, 20, scene=1))
    assert page.degraded == ("cached_ranking",)
    assert ids(page) == whole


def test_rules_hold_for_the_last_ranking(make: Make) -> None:
    made = make({"use": "ours.Reverse"}, {"use": "ours.FailsFor", "how": "time"})
    whole = ids(made(request(6, 20)))
    assert ids(made(request(6, 5, scene=1))) == whole[::-1][:5]


@pytest.mark.parametrize(("size", "found"), [(6, 12), (40, 54)])
def test_rules_choose_from_twice_as_many_popular_items_as_are_asked_for(make: Make, size: int, found: int) -> None:
    made = make({"use": "ours.FailsFor", "how": "time"}, {"use": "ours.Note"}, limits=BudgetConfig(page_ms=3.6e6))
    assert made(request(6, size, scene=1)).degraded == ("popular", f"1 h, {found}")


def test_a_last_ranking_that_is_too_short_by_now_is_not_used(make: Make) -> None:
    made = make({"use": "ours.FailsFor", "how": "time"})
    whole = ids(made(request(6, 20)))
    watched = tuple(event(6, item) for item in whole[:15])
    assert made(request(6, 10, scene=1, feedback=watched)).degraded == ("popular",)


def test_a_page_that_is_late_already_is_not_ranked(make: Make, seen: SeenPages) -> None:
    made = make(limits=BudgetConfig(page_ms=50_000))
    made(request(6, 10))
    seen.stages.clear()
    page = made(request(6, 10), perf_counter() - 51)
    assert page.degraded == ("cached_ranking",)
    assert "rank" not in seen.stages


@pytest.mark.parametrize(
    ("seconds", "size", "degraded"), [(0.0, 10, ()), (1.0, 50, ("fewer_ranked",)), (1e3, 10, ("cached_ranking",))]
)
def test_with_little_time_fewer_are_ranked_and_with_less_none(
    make: Make, seconds: float, size: int, degraded: tuple[str, ...]
) -> None:
    """The page is requested with 12.5 s left, in which the estimate of a candidate's time allows all, at most 12 or none."""
    first, _, last = stages(candidates=50)
    rank = {"use": "ours.SlowRank", "seconds": seconds, "candidates_min": 1, "reserve_ms": 0.0}
    made = make(first=(first, rank, last), limits=BudgetConfig(page_ms=60_000))
    whole = ids(made(request(6, 50)))
    page = made(request(6, size, scene=1), perf_counter() - 60 + 12.5)
    assert page.degraded == degraded
    assert 1 <= len(ids(page)) <= 12
    assert set(ids(page)) <= set(whole)


def test_a_rule_holds_on_every_step_and_one_that_fails_is_left_out(make: Make) -> None:
    spread = {"use": "spread", "max_per_category": 1}
    made = make(spread, {"use": "ours.FailsFor", "how": "time"}, cache=CacheConfig(users=0))
    codes = read_page(made(request(6, 6, scene=1))).categories[:, 0]
    assert len(np.unique(codes)) == 6
    made = make({"use": "ours.FailingRule", "how": "mistake"})
    page = made(request(6, 6, scene=1))
    assert page.degraded == ("failed_FailingRule", "popular", "failed_FailingRule")
    assert len(ids(page)) == 6


@pytest.fixture
def may() -> Iterator[Event]:
    """Set, what hangs in `ours` ends."""
    event: Event = sys.modules["ours"].Hangs.may  # type: ignore[attr-defined]
    event.clear()
    yield event
    event.set()


def test_a_stage_that_hangs_is_left_out_until_it_ends(make: Make, may: Event) -> None:
    made = make({"use": "ours.Hangs"}, limits=BudgetConfig(page_ms=3.6e6))
    whole = ids(made(request(6, 20)))
    late = perf_counter() - 3599.95  # the one page that waits has little time left
    assert made(request(6, 10, scene=1), late).degraded[0] == "hung_Hangs"
    for scene in (0, 1):
        page = made(request(6, 10, scene=scene))
        assert page.degraded == ("hung_Hangs", "cached_ranking")
        assert ids(page) == whole[:10]
    pipeline = made.engine.pipeline
    until(lambda: pipeline.hung_s > 1.0, "a call that takes long")
    with pytest.raises(HungError, match="one that has been running for 1 s"):
        pipeline.check()
    may.set()
    until(lambda: not pipeline.hung_s, "the call ends")
    pipeline.check()
    assert made(request(6, 10)).degraded == ()


def test_a_rule_that_hangs_is_left_out_of_every_step(make: Make, may: Event) -> None:
    made = make({"use": "ours.HangingRule"}, cache=CacheConfig(users=0), limits=BudgetConfig(page_ms=200))
    page = made(request(6, 6, scene=1))
    assert page.degraded == ("hung_HangingRule", "popular", "hung_HangingRule")
    assert len(ids(page)) == 6


def test_a_channel_that_hangs_leaves_its_room_to_the_others(make: Make, may: Event) -> None:
    channels = ({"use": "ours.HangingChannel", "quota": 10}, {"use": "popular", "quota": 10})
    first = ({"use": "retrieve", "candidates": 20, "channel": channels}, *stages()[1:])
    made = make(first=first, limits=BudgetConfig(page_ms=60_000))
    assert made(request(6, 20)).degraded == ()
    page = made(request(6, 20, scene=1), perf_counter() - 58)
    assert page.degraded[0] == "hung_HangingChannel"
    assert "cached_ranking" not in page.degraded
    assert len(ids(page)) == 20
    assert made.engine.pipeline.hung_s > 0


# ---------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize("scene", [0, 1])
def test_what_is_filtered_is_on_no_page_whole_or_not(run: SmallRun, make: Make, scene: int) -> None:
    codes, authors = run.published.item_category[1:, 0], run.published.item_author[1:]
    late = {"use": "ours.FailsFor", "how": "time"}

    def shown(**filters: Any) -> np.ndarray:
        found = ids(make(late, first=stages(candidates=60), filters=FiltersConfig(**filters))(request(0, 60, scene=scene)))
        return np.searchsorted(run.published.item_id, found) - 1

    assert set(codes[shown(categories=(1, 2))]) == {1, 2}
    assert not {1, 2} & set(codes[shown(categories_not=(1, 2))])
    assert set(authors[shown(authors=(101, 103))]) == {101, 103}
    assert 101 not in authors[shown(authors_not=(101,))]
    assert len(shown()) == 60
    assert len(shown(age_max_days=0.5)) == 0, "all were uploaded years ago"


def test_what_was_seen_comes_back_only_when_the_file_says_so(make: Make) -> None:
    first = ids(make()(request(6, 5)))
    watched = tuple(event(6, item) for item in first)
    assert not set(first) & set(ids(make()(request(6, 20, feedback=watched))))
    again = make(first=stages(candidates=60), filters=FiltersConfig(seen=False))(request(6, 60, feedback=watched))
    assert set(first) <= set(ids(again))


def test_a_take_down_needs_no_restart(run: SmallRun, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.CHECK_S", -1.0)
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.SETTLE_S", -1.0)
    removed = run.folder / "removed.txt"
    removed.write_text("")
    made = make({"use": "ours.FailsFor", "how": "time"}, filters=FiltersConfig(removed="removed.txt"))
    first = ids(made(request(6, 10)))
    removed.write_text(f"{first[0]}\n{first[1]}\n99999999\n")
    for scene in (0, 1):
        assert not set(first[:2]) & set(ids(made(request(6, 20, scene=scene))))
    removed.write_text("nonsense")  # what was removed stays so
    assert not set(first[:2]) & set(ids(made(request(6, 20))))
    os.unlink(removed)
    assert not set(first[:2]) & set(ids(made(request(6, 20))))
    removed.write_text(f"{first[1]}")
    assert set(first[:2]) & set(ids(made(request(6, 20)))) == {first[0]}
