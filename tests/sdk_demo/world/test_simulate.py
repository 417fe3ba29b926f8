from __future__ import annotations

import msgspec
import numpy as np
import pytest

from pocketrank.cloud.data import schema
from pocketrank.cloud.data.schema import ImpressionLog
from pocketrank.device.contract import Ended
from pocketrank.sdk_demo.world import World, WorldConfig
from pocketrank.sdk_demo.world.calibrate import measure
from tests.sdk_demo.world.worlds import small


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldConfig.load())


@pytest.fixture(scope="module")
def log(world: World) -> ImpressionLog:
    return world.simulate_log(seed=3)  # another seed than the one that calibration used


def column(log: ImpressionLog, name: str) -> np.ndarray:
    return log.impressions[name].to_numpy(zero_copy_only=False)


def test_rates_are_kuairand_s(world: World, log: ImpressionLog) -> None:
    got, target = measure(log), world.config.targets
    assert got["effective_view"] == pytest.approx(target.effective_view, abs=0.02)
    assert got["long_view"] == pytest.approx(target.long_view, abs=0.02)
    assert got["like"] == pytest.approx(target.like, abs=0.004)
    assert target.follow / 2 < got["follow"] < target.follow * 2
    assert 15 <= got["session_impressions"] <= 25
    assert 100_000 <= log.impressions.num_rows <= 150_000


def test_log_follows_the_schema(world: World, log: ImpressionLog) -> None:
    assert log.simulated
    assert log.name == "world"
    for name in ImpressionLog.TABLES:
        table = getattr(log, name)
        assert table.schema.equals(getattr(schema, name.upper()))
        table.validate(full=True)
        for field in table.schema:
            assert field.nullable or table[field.name].null_count == 0
    for label in ("click", "comment", "share", "profile_enter"):
        assert log.impressions[label].null_count == log.impressions.num_rows
    known = [f.name for f in schema.IMPRESSIONS if f.name not in ("click", "comment", "share", "profile_enter")]
    assert all(log.impressions[name].null_count == 0 for name in known)
    assert log.items["item_id"].to_pylist() == world.items.item_id.tolist()
    assert log.users["user_id"].to_pylist() == world.users.user_id.tolist()


def test_rows_are_sorted_and_make_sense(world: World, log: ImpressionLog) -> None:
    time, user, item = column(log, "impression_ms"), column(log, "user_id"), column(log, "item_id")
    assert np.array_equal(np.lexsort((item, user, time)), np.arange(len(time)))
    assert len(np.unique(user * 10_000 + item)) == len(user)  # nobody sees an item twice
    duration = world.items.duration_ms[item - 1]
    watch = column(log, "watch_ms")
    assert (watch >= 0).all()
    assert (watch <= duration).all()
    assert (world.items.upload_ms[item - 1] <= time).all()
    assert np.array_equal(column(log, "effective_view"), watch >= np.minimum(duration, 7000))
    assert np.array_equal(column(log, "long_view"), watch >= np.minimum(duration, 18_000))
    ended = column(log, "ended")
    assert np.array_equal(column(log, "has_next"), (ended == Ended.SWIPE) | (ended == Ended.COMPLETE))
    assert np.array_equal(column(log, "backgrounded"), ended == Ended.BACKGROUND)
    assert (watch[ended == Ended.COMPLETE] == duration[ended == Ended.COMPLETE]).all()
    assert column(log, "volume").min() >= 0
    assert column(log, "volume").max() <= 1
    assert column(log, "scroll_speed").min() > 0


def test_sessions_are_whole_and_do_not_overlap(log: ImpressionLog) -> None:
    session, position = column(log, "session_id"), column(log, "position")
    order = np.lexsort((position, session))
    session, position = session[order], position[order]
    time, user, more = (column(log, name)[order] for name in ("impression_ms", "user_id", "has_next"))
    watch = column(log, "watch_ms")[order]
    same = session[1:] == session[:-1]
    assert (position[1:][same] == position[:-1][same] + 1).all()
    assert (position[1:][~same] == 0).all()
    assert (more[:-1] == same).all()
    assert (user[1:][same] == user[:-1][same]).all()
    assert (time[1:][same] >= time[:-1][same] + watch[:-1][same]).all()
    by_user = np.lexsort((time, user))
    changes = np.flatnonzero(np.diff(session[by_user]) != 0) + 1
    assert len(changes) + 1 == len(np.unique(session))  # ordered by time, each session is one run


def test_pages_hold_all_that_was_shown(world: World, log: ImpressionLog) -> None:
    policy = world.config.policy
    offered = np.stack(log.pages["item_id"].to_numpy())
    assert offered.shape[1] == policy.page_size
    assert (np.diff(np.sort(offered, axis=1), axis=1) > 0).all()
    page, position = column(log, "page_id"), column(log, "position")
    assert log.pages["page_id"].to_pylist() == list(range(1, len(offered) + 1))
    assert np.array_equal(np.unique(page), log.pages["page_id"].to_numpy())
    assert np.array_equal(offered[page - 1, position % policy.shown], column(log, "item_id"))


def test_same_seed_same_log_another_seed_another() -> None:
    config = small()
    digests = [World(config).simulate_log(seed=seed).digest() for seed in (1, 1, 2)]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    assert World(config, seed=config.seed + 1).simulate_log(seed=1).digest() != digests[0]


def test_progress_rises_to_one() -> None:
    heard: list[float] = []
    World(small(users=30)).simulate_log(seed=1, progress=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    assert len(heard) > 10


def test_repeats_only_when_the_catalogue_is_exhausted() -> None:
    replace = msgspec.structs.replace
    config = small(users=3, items=60)
    config = replace(
        config,
        catalogue=replace(config.catalogue, initial_share=1.0),
        log=replace(config.log, sessions_per_user=30.0),
        users=replace(config.users, activity_sigma=0.0),
    )
    log = World(config).simulate_log(seed=1)
    user, item = column(log, "user_id"), column(log, "item_id")
    for one in np.unique(user):
        mine = item[user == one]
        # A page is made of 30, so an old item can only come up once fewer than a page is left.
        assert len(np.unique(mine[:30])) == 30
        assert len(mine) > 60
        assert len(np.unique(mine)) == 60
