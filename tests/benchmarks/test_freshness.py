import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.freshness.guard import _flip, _mixed
from benchmarks.freshness.load import events_of
from benchmarks.staleness import AGES, measure_staleness
from pocketrank.cloud.data.days import day_of, day_rows
from pocketrank.cloud.streams.messages import Sample, ServedInputs
from pocketrank.cloud.training.learning_base import open_base
from pocketrank.device.codec import to_block
from pocketrank.device.contract import Candidates, Columns, Ended, Page
from pocketrank.sdk_demo.world import World, WorldConfig
from tests.cloud.training.learned_world import published


def page(scores: dict[str, float], items: int = 10) -> Page:
    names = tuple(f"pxtr_{name}" for name in scores)
    values = np.tile(np.array(list(scores.values()), np.float32), (items, 1))
    empty = Columns(names=(), values=to_block(np.zeros((items, 0), np.int32), "i4"))
    candidates = Candidates(
        item_id=to_block(np.arange(items), "i8"), floats=Columns(names=names, values=to_block(values, "f4")), categories=empty
    )
    return Page(page_id="p", request_id="r", created_ms=0, ttl_ms=1, candidates=candidates, compute_price=1.0)


def test_users_do_what_the_ranker_says() -> None:
    rng, scores = random.Random(0), {"effective_view": 0.7, "like": 0.2, "has_next": 0.9}
    events = [event for _ in range(300) for event in events_of(rng, page(scores), 1, "s")]
    assert np.mean([event.like for event in events]) == pytest.approx(0.2, abs=0.03)
    assert np.mean([event.watch_ms > 10_000 for event in events]) == pytest.approx(0.7, abs=0.04)
    assert np.mean([event.ended == Ended.EXIT for event in events]) == pytest.approx(0.1, abs=0.03)


def test_what_is_wrong_is_wrong_in_one_thing() -> None:
    inputs = ServedInputs(
        user_id=1, scene=0, hour=0, history_item=np.arange(2).astype("<i8").tobytes(),
        history_feedback=np.arange(6).astype("<f4").tobytes(),
    )  # fmt: skip
    sample = Sample(
        batch=1, of=1, page_id="p", item_id=1, place=0, event_ms=0, labels={"like": True, "follow": False}, run="r",
        inputs=inputs, pxtr=b"",
    )  # fmt: skip
    assert _flip(sample).labels == {"like": False, "follow": True}
    assert msgspec.structs.replace(_flip(sample), labels=sample.labels) == sample
    mixed = np.frombuffer(_mixed(sample).inputs.history_feedback, "<f4").reshape(2, 3)
    assert mixed.tolist() == [[2, 1, 0], [5, 4, 3]]


def test_every_age_has_figures_and_fresher_ones_know_more(tmp_path: Path) -> None:
    base = open_base(published(tmp_path))  # of this world, with random weights
    config = WorldConfig.load()
    catalogue = msgspec.structs.replace(config.catalogue, items=400, authors=80)
    users = msgspec.structs.replace(config.users, count=60)
    log = World(msgspec.structs.replace(config, users=users, catalogue=catalogue)).simulate_log(seed=0)
    day, _ = day_rows(log.parts(columns=("impression_ms",)), log.time_zone)
    report = measure_staleness(base, log, day_of(int(day[-1])), 0.5, False, rows_max=300)
    assert list(report["staleness"]) == list(AGES)
    found = [of[task][name] for row in report["staleness"].values() for of in row.values() for task in of for name in of[task]]
    assert all(0.3 < value < 1 for value in found)
    assert len({of["frozen"]["like"]["auc"] for of in report["staleness"].values()}) > 1, "histories of other ages"
    assert len({of["like"]["auc"] for of in report["staleness"]["event"].values()}) > 1, "parameters of other ages"
