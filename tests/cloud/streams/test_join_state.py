from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.cloud.streams.event_log import Record, Topic
from pocketrank.cloud.streams.feedback_log import LoggedEvent
from pocketrank.cloud.streams.join_state import JoinConfig, JoinState
from pocketrank.cloud.streams.messages import Sample, ServedPage
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import Ended, MismatchError
from tests.cloud.streams.batch_join import BASE_MS, HOUR_MS, batch_join, last_revisions, random_records, served

CONFIGS = [
    JoinConfig(actions=("buy",), negatives=1, exposures=2),
    JoinConfig(wait_for_next=True),
    JoinConfig(has_next=False, negatives=0.5),
]
ITEMS = [10, 11, 12, 13, 14]


def durations(item_id: int) -> int | None:
    return {0: None, 1: 400, 2: 12_000}.get(item_id % 5, 60_000)


class Joining:
    """A state that is fed records, and the samples that it sent."""

    def __init__(self, config: JoinConfig | None = None, path: Path | None = None) -> None:
        self.pages, self.samples = dict[int, bytes](), list[Sample]()
        self.config, self.path, self.count = config or JoinConfig(), path, 0
        self.state = self.opened()

    def opened(self) -> JoinState:
        return JoinState(self.config, durations, lambda partition, offset: self.pages.get(offset), self.path)

    def feed(self, topic: Topic, record: Record) -> list[Sample]:
        if topic == "pages":
            self.pages[record.offset] = record.value
        (self.state.page if topic == "pages" else self.state.event)(record)
        return self.taken()

    def taken(self) -> list[Sample]:
        new = self.state.take()
        self.samples += new
        return new

    def advance(self, ms: int) -> list[Sample]:
        self.state.advance(BASE_MS + ms)
        return self.taken()

    def write(self) -> None:
        self.state.db.execute("BEGIN")
        self.state.write()
        self.state.db.execute("COMMIT")

    def page(self, page_id: str = "p", ms: int = 0, items: Sequence[int] = ITEMS, served_ms: int = 0) -> list[Sample]:
        self.count += 1
        value = to_msgpack(served(page_id, 1, "s", items, served_ms or BASE_MS + ms))
        return self.feed("pages", Record(1, value, BASE_MS + ms, 0, self.count))

    def event(self, item_id: int = 10, position: int = 0, *, ms: int = 1000, user: int = 1, **more: object) -> list[Sample]:
        self.count += 1
        fields: dict[str, object] = {
            "event_id": f"e{self.count}",
            "user_id": user,
            "session_id": "s",
            "item_id": item_id,
            "position": position,
            "impression_ms": 5,
            "watch_ms": 1000,
            "page_id": "p",
        }
        event = LoggedEvent(**{**fields, **more})  # type: ignore[arg-type]
        return self.feed("feedback", Record(user, to_msgpack(event), BASE_MS + ms, 0, self.count))


@given(st.integers(0, 2**32), st.sampled_from(CONFIGS))
@settings(max_examples=70, deadline=None)
def test_last_revisions_are_those_of_the_batch_join(seed: int, config: JoinConfig) -> None:
    rng = Random(seed)
    records, sent = random_records(rng), 0
    with TemporaryDirectory() as folder:
        joining = Joining(replace(config, in_memory=2, pages_bytes=2000), Path(folder) / "join.db")
        for topic, record in records:
            joining.feed(topic, record)
            if rng.random() < 0.1:
                joining.write()
                if rng.random() < 0.3:  # another process goes on
                    now_ms, sent = joining.state.now_ms, sent + joining.state.counts.samples
                    joining.state.close()
                    joining.state = joining.opened()
                    joining.state.now_ms = now_ms
        now_ms = records[-1][1].appended_ms + rng.choice([0, HOUR_MS, 30 * HOUR_MS])
        joining.state.advance(now_ms)
        joining.taken()
        joining.state.close()
    assert last_revisions(joining.samples) == batch_join(records, config, durations, now_ms)
    assert sent + joining.state.counts.samples == len(joining.samples)


def test_a_sample_has_the_inputs_as_served_and_is_sent_with_its_event() -> None:
    joining = Joining()
    assert joining.page() == []
    (sample,) = joining.event(12, watch_ms=8000, like=True, actions=("buy",), correction_ms=100)
    page = from_msgpack(joining.pages[1], ServedPage)
    assert (sample.page_id, sample.item_id, sample.place, sample.run, sample.inputs) == ("p", 12, 2, "run", page.inputs)
    assert (sample.pxtr, sample.statistics) == (page.pxtr[24:36], page.statistics[16:24])
    assert (sample.event_ms, sample.watch_ms, sample.shown, sample.revision, sample.before) == (105, 8000, True, 0, {})
    true = {name for name, value in sample.labels.items() if value}
    assert true == {"effective_view", "like", "buy"}
    assert "has_next" not in sample.labels
    assert not sample.labels["long_view"]
    assert not sample.labels["click"]


def test_the_next_impression_is_a_correction() -> None:
    joining = Joining()
    joining.page()
    joining.event(10, 0)
    corrected, first = joining.event(11, 1, impression_ms=1)
    assert (corrected.item_id, corrected.revision, corrected.labels["has_next"]) == (10, 1, True)
    assert corrected.before == {name: value for name, value in corrected.labels.items() if name != "has_next"}
    assert (first.item_id, first.revision) == (11, 0)
    (over,) = joining.advance(1000 + 30 * 60_000)
    assert (over.item_id, over.revision, over.labels["has_next"]) == (11, 1, False)
    late, other = joining.event(12, 2, ms=3 * HOUR_MS)
    assert (late.item_id, late.revision, late.before["has_next"], late.labels["has_next"]) == (11, 2, False, True)
    assert other.item_id == 12
    assert joining.state.counts.late == 1


@pytest.mark.parametrize("ended", [Ended.EXIT, Ended.BACKGROUND])
def test_a_user_who_left_has_no_next_impression(ended: Ended) -> None:
    joining = Joining()
    joining.page()
    (sample,) = joining.event(ended=ended)
    assert sample.labels["has_next"] is False


def test_a_sample_can_wait_for_its_next_impression() -> None:
    joining = Joining(JoinConfig(wait_for_next=True))
    joining.page()
    assert joining.event(10, 0) == []
    (sample,) = joining.event(11, 1)
    assert (sample.item_id, sample.revision, sample.labels["has_next"]) == (10, 0, True)


def test_a_run_without_the_task_gets_no_corrections_for_it() -> None:
    joining = Joining(JoinConfig(has_next=False))
    joining.page()
    sent = [*joining.event(10, 0), *joining.event(11, 1), *joining.advance(HOUR_MS)]
    assert [(sample.item_id, sample.revision, "has_next" in sample.labels) for sample in sent] == [
        (10, 0, False),
        (11, 0, False),
    ]


def test_a_late_action_corrects_and_a_duplicate_does_not() -> None:
    joining = Joining()
    joining.page()
    (first,) = joining.event(event_id="a")
    assert joining.event(event_id="a", like=True) == []
    assert joining.state.counts.duplicates == 1
    over, second = joining.event(event_id="b", share=True, watch_ms=30_000, ms=24 * HOUR_MS)
    assert (second.revision, second.before, second.watch_ms) == (2, over.labels, 30_000)
    assert second.labels["share"]
    assert second.labels["long_view"]
    assert not first.labels["share"]


def test_an_event_waits_for_its_page() -> None:
    joining = Joining(JoinConfig(wait_ms=5000))
    assert joining.event(ms=1000) == []
    assert [sample.item_id for sample in joining.page(ms=5999)] == [10]
    joining.event(page_id="q", ms=6000)
    assert joining.page("q", ms=11_000) == []
    assert joining.state.counts.without_page == 1


def test_a_page_takes_events_until_it_is_too_old() -> None:
    joining = Joining(JoinConfig(late_ms=2 * HOUR_MS))
    joining.page()
    assert len(joining.event(10, ms=2 * HOUR_MS - 1)) == 1
    assert joining.event(11, ms=2 * HOUR_MS) == []
    joining.write()
    assert (joining.state.counts.expired, joining.state.counts.open_pages) == (1, 0)


def test_events_that_belong_to_no_candidate_are_counted_by_reason() -> None:
    joining = Joining()
    joining.page()
    assert [*joining.event(99), *joining.event(page_id=None), *joining.event(user=2), *joining.advance(HOUR_MS)] == []
    counts = joining.state.counts
    assert (counts.other_item, counts.no_page, counts.without_page, counts.events) == (1, 1, 1, 3)
    joining.feed("feedback", Record(1, b"no event", BASE_MS + HOUR_MS, 0, 99))
    assert counts.unreadable == 1


def test_candidates_are_passed_over_by_exposures_a_newer_page_or_the_end() -> None:
    joining = Joining(JoinConfig(has_next=False, negatives=1, exposures=2))

    def passed(samples: Sequence[Sample]) -> list[int]:
        return [sample.item_id for sample in samples if not sample.shown]

    joining.page()
    assert passed(joining.event(12)) == []
    assert passed(joining.event(13, 1)) == [10, 11]
    assert passed(joining.page("q", ms=2000, items=[20, 21])) == [14]
    assert passed(joining.page("older", ms=2000, items=[30], served_ms=BASE_MS)) == [30]
    (corrected,) = joining.event(14, 2, ms=2000)
    assert (corrected.revision, corrected.shown, corrected.before) == (1, True, {})
    unshown = joining.advance(HOUR_MS)
    assert passed(unshown) == [20, 21]
    assert unshown[0].labels == {}
    assert unshown[0].event_ms == BASE_MS + 2000
    assert joining.state.counts.negatives == 6


def test_a_share_of_the_candidates_not_shown_is_chosen_by_hash() -> None:
    joining = Joining(JoinConfig(negatives=0.25))
    joining.page(items=range(4000))
    assert 900 < len(joining.advance(HOUR_MS)) < 1100


def test_a_forgotten_user_leaves_nothing() -> None:
    joining = Joining()
    joining.page()
    joining.event()
    joining.write()
    joining.feed("feedback", Record(1, b"", BASE_MS + 2000, 0, 90))
    assert joining.event(11, ms=3000) == []
    assert joining.advance(50 * HOUR_MS) == []
    joining.write()
    assert [joining.state.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("user", "page")] == [0, 0]


def test_memory_is_bounded_and_the_rest_is_on_the_disk(tmp_path: Path) -> None:
    joining = Joining(JoinConfig(in_memory=3, pages_bytes=5000), tmp_path / "join.db")
    for number in range(40):
        joining.page(f"p{number}", ms=number)
        joining.write()
    counts = joining.state.counts
    assert counts.open_pages == 40
    assert 0 < counts.pages_in_memory < 10
    assert counts.spilled == 40 - counts.pages_in_memory
    assert [len(joining.event(page_id=f"p{number}")) > 0 for number in range(40)] == [True] * 40


@pytest.mark.parametrize(
    "wrong", [{"wait_ms": 0}, {"wait_ms": HOUR_MS}, {"late_ms": 1}, {"negatives": 2}, {"negatives": 0.1, "wait_for_next": True}]
)
def test_settings_that_contradict_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(MismatchError, match="JoinConfig"):
        JoinConfig(**wrong)  # type: ignore[arg-type]
