from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.sdk_demo.emulator.figures import FIGURES, FigureConfig, figures
from pocketrank.sdk_demo.emulator.records import SessionRecord

ALL = ("cloud_order", "on_device", "oracle")
FEW = FigureConfig(resamples=200)

sessions = st.builds(
    SessionRecord,
    policy=st.just("cloud_order"),
    user_id=st.integers(1, 5),
    effective=st.lists(st.booleans(), min_size=1, max_size=12),
    likes=st.integers(0, 3),
    follows=st.integers(0, 1),
    watch_ms=st.integers(0, 10**6),
    requests=st.integers(1, 5),
)


def _as(policy: str, records: list[SessionRecord], *, more: int = 0) -> list[SessionRecord]:
    return [replace(r, policy=policy, effective=[*r.effective, *[True] * more]) for r in records]


@given(st.lists(sessions, min_size=1, max_size=20))
def test_means_lie_within_their_intervals_and_follow_the_records(records: list[SessionRecord]) -> None:
    report = figures(records, ("cloud_order",), seed=0, config=FEW)
    row = report["policies"]["cloud_order"]
    assert row["items_per_session"] == pytest.approx(np.mean([len(r.effective) for r in records]))
    assert row["effective_views_per_session"] == pytest.approx(np.mean([sum(r.effective) for r in records]))
    assert row["watch_s_per_session"] == pytest.approx(np.mean([r.watch_ms for r in records]) / 1000)
    assert all(row[f"{name}_ci95"][0] <= row[f"{name}_ci95"][1] for name in FIGURES)
    assert report["uplift_share"] is None
    position = report["by_position"]["cloud_order"]
    assert position["alive"][0] == 1
    assert position["alive"] == sorted(position["alive"], reverse=True)
    assert position["effective_views_so_far"][-1] == pytest.approx(row["effective_views_per_session"])


@given(st.lists(sessions, min_size=1, max_size=20), st.integers(0, 3), st.integers(1, 3))
def test_equal_sessions_gain_nothing_and_a_constant_gain_has_no_width(
    records: list[SessionRecord], ours: int, beyond: int
) -> None:
    everything = records + _as("on_device", records, more=ours) + _as("oracle", records, more=ours + beyond)
    report = figures(everything, ALL, seed=0, config=FEW)
    gain = report["gain"]["on_device"]["effective_views_per_session"]
    assert gain["mean"] == pytest.approx(ours)
    assert gain["ci95"] == pytest.approx([ours, ours])
    assert report["gain"]["oracle"]["likes_per_session"]["mean"] == 0
    assert report["uplift_share"]["mean"] == pytest.approx(ours / (ours + beyond))
    assert report["uplift_share"]["ci95"] == pytest.approx([ours / (ours + beyond)] * 2)
    assert report["gain"]["on_device"]["uplift_share"] == report["uplift_share"]
    assert report["gain"]["oracle"]["uplift_share"] == {"mean": 1, "ci95": [1, 1]}


@given(st.lists(sessions, min_size=1, max_size=20), st.integers(0, 3))
def test_every_policy_has_its_share_and_any_can_be_the_floor(records: list[SessionRecord], more: int) -> None:
    named = {"cloud_order": 0, "refreshed": 1, "beam": 1 + more, "oracle": 2 + more}
    everything = [r for name, n in named.items() for r in _as(name, records, more=n)]
    report = figures(everything, tuple(named), seed=0, config=FEW)
    assert report["uplift_share"] is None, "the product did not take part"
    for name in ("refreshed", "beam"):
        assert report["gain"][name]["uplift_share"]["mean"] == pytest.approx(named[name] / named["oracle"])
    above = figures(everything, ("refreshed", "beam"), seed=0, config=replace(FEW, floor="refreshed"))["gain"]
    assert above.keys() == {"beam"}
    assert above["beam"]["effective_views_per_session"]["ci95"] == pytest.approx([more, more])
    assert above["beam"]["uplift_share"] is None


def test_trainings_that_differ_widen_the_interval() -> None:
    """Every user alike, one training twice as good as the other: all doubt is which trainings there are."""
    records = [
        SessionRecord(policy, user, training, effective=[True] * (1 + better * (training + 1)))
        for policy, better in (("cloud_order", 0), ("on_device", 1), ("oracle", 2))
        for user in range(20)
        for training in (0, 1)
    ]
    report = figures(records, ALL, seed=0)
    assert report["gain"]["on_device"]["effective_views_per_session"] == {"mean": 1.5, "ci95": [1, 2]}
    assert report["uplift_share"] == {"mean": 0.5, "ci95": [0.5, 0.5]}, "the oracle had the same trainings"


@given(st.lists(sessions, min_size=1, max_size=20))
def test_a_training_alone_has_the_figures_it_has_without_others(records: list[SessionRecord]) -> None:
    numbered = [replace(r, training=7) for r in records]
    assert figures(numbered, ("cloud_order",), seed=0, config=FEW) == figures(records, ("cloud_order",), seed=0, config=FEW)


def test_users_who_came_with_one_training_only_are_no_trouble() -> None:
    records = [SessionRecord("cloud_order", 1, 0, effective=[True]), SessionRecord("cloud_order", 2, 1, effective=[False])]
    row = figures(records, ("cloud_order",), seed=0)["policies"]["cloud_order"]
    assert (row["effective_views_per_session"], row["effective_views_per_session_ci95"]) == (0.5, [0, 1])


def test_where_the_oracle_wins_nothing_there_is_no_share() -> None:
    records = [SessionRecord("cloud_order", 1, effective=[True])]
    report = figures(records + _as("on_device", records) + _as("oracle", records), ALL, seed=0, config=FEW)
    assert report["uplift_share"] is None


def test_a_users_sessions_stay_together() -> None:
    """Two users who differ and many sessions of each: between users is where the doubt lies."""
    records = [SessionRecord("cloud_order", user, effective=[user == 2]) for user in (1, 2) for _ in range(500)]
    low, high = figures(records, ("cloud_order",), seed=0)["policies"]["cloud_order"]["effective_views_per_session_ci95"]
    assert (low, high) == (0, 1)


def test_latencies_are_reported_and_missing_ones_are_null() -> None:
    times = [0.01, 0.5, 1.0, 1e4]
    latency = figures([SessionRecord("on_device", 1, effective=[True], rerank_ms=times)], ("on_device",), seed=0)["latency_ms"]
    assert latency["rerank_p50"] == pytest.approx(0.75)
    assert latency["page_p50"] is None
    assert sum(latency["rerank_histogram"]["counts"]) == len(times)
    assert sum(latency["page_histogram"]["counts"]) == 0


def test_counters_are_summed() -> None:
    one, other = SessionRecord("oracle", 1, effective=[True], pages_missing=2), SessionRecord("oracle", 2, effective=[True])
    other.starved, other.counters.pages, one.counters.pages = True, 3, 4
    counters = figures([one, other], ("oracle",), seed=0)["counters"]["oracle"]
    assert (counters["pages"], counters["pages_missing"], counters["sessions_starved"]) == (7, 2, 1)
