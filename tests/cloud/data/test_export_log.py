from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pocketrank.cloud.data.export_log import Exported, export_log
from pocketrank.cloud.data.log import StoredLog
from pocketrank.cloud.data.schema import DataError
from pocketrank.cloud.streams.event_log import NewRecord
from pocketrank.cloud.streams.feedback_log import LoggedEvent
from pocketrank.cloud.streams.messages import ItemChange, ServedInputs, ServedPage, UserChange
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.cloud.training.train import train
from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import Ended
from tests.cloud.small_published import TASKS, SmallRun, small_run
from tests.cloud.training.test_recipe import QUICK

START_MS, DAY_MS, NEW_ITEM = 1_700_006_400_000, 86_400_000, 7


@dataclass
class Collected:
    """The topics of a server, and its run."""

    run: SmallRun
    feedback: SqliteFeedbackLog
    log: SqliteEventLog

    def page(self, page_id: str, user: int, items: list[int], scene: int = 1) -> np.ndarray:
        pxtr = np.random.default_rng(len(page_id) + user).random((len(items), len(TASKS)), np.float32)
        page = ServedPage(
            page_id=page_id,
            session_id=page_id,
            served_ms=START_MS,
            run="run",
            inputs=ServedInputs(user_id=user, scene=scene, hour=0, history_item=b"", history_feedback=b""),
            item_id=np.array(items, "<i8").tobytes(),
            pxtr=pxtr.tobytes(),
            score=b"",
        )
        self.log.append("pages", [NewRecord(user, to_msgpack(page))])
        return pxtr

    def event(self, page_id: str | None, user: int, item: int, position: int, **more: object) -> LoggedEvent:
        fields: dict[str, object] = {
            "event_id": f"{page_id}-{item}-{position}",
            "user_id": user,
            "session_id": page_id or "none",
            "item_id": item,
            "position": position,
            "impression_ms": START_MS + position,
            "watch_ms": 1000,
            "page_id": page_id,
        }
        return LoggedEvent(**{**fields, **more})  # type: ignore[arg-type]

    def export(self, out: Path) -> tuple[StoredLog, Exported]:
        run = self.run
        return export_log(self.log, run.published, run.record, out, name="collected", weights={TASKS[0]: 2.0})


@pytest.fixture
def collected(tmp_path: Path) -> Iterator[Collected]:
    run = small_run(tmp_path / "run", actions=("buy",))
    feedback = SqliteFeedbackLog(tmp_path / "feedback.db")
    with closing(feedback), closing(SqliteEventLog(tmp_path / "events.db", feedback)) as log:
        yield Collected(run, feedback, log)


def test_a_log_has_what_was_served_and_what_was_done(collected: Collected, tmp_path: Path) -> None:
    item = ItemChange(item_id=NEW_ITEM, changed_ms=START_MS, duration_ms=900, author_id=5, category=3, vector=(1.0, 2.0))
    collected.log.append("items", [NewRecord(NEW_ITEM, to_msgpack(item))])
    user = UserChange(user_id=1, changed_ms=START_MS, categories={"city": 4}, floats={"age": 0.5})
    collected.log.append("users", [NewRecord(1, to_msgpack(user))])
    pxtr = collected.page("p", 1, [1000, NEW_ITEM, 55, 1003])
    collected.feedback.append(
        [
            collected.event("p", 1, NEW_ITEM, 0, volume=0.5, muted=True),
            collected.event("p", 1, NEW_ITEM, 0, event_id="later", like=True, actions=("buy",), volume=0.1),
            collected.event("p", 1, 1003, 1, correction_ms=50, watch_ms=20_000, ended=Ended.EXIT),
            collected.event(None, 1, 1000, 0, playback_rate=0.0),
            collected.event("p", 1, 55, 2),
            collected.event("p", 1, 1000, 3, impression_ms=1),
        ]
    )
    log, counts = collected.export(tmp_path / "log")
    assert (counts.pages, counts.events, counts.impressions) == (1, 5, 3)
    assert (counts.unknown_items, counts.undated, counts.without_page) == (1, 1, 1)
    rows = {(row["item_id"], row["page_id"] is not None): row for row in log.load().impressions.to_pylist()}
    new, last, lone = rows[NEW_ITEM, True], rows[1003, True], rows[1000, False]
    assert (new["like"], new["buy"], new["click"], new["volume"], new["muted"], new["scene"]) == (
        True,
        True,
        False,
        0.5,
        True,
        1,
    )
    assert (new["effective_view"], new["long_view"], new["has_next"]) == (True, True, True)
    assert (last["impression_ms"], last["long_view"], last["ended"], last["position"]) == (START_MS + 51, True, 2, 1)
    assert (lone["scene"], lone["playback_rate"], lone["has_next"], lone["like"]) == (None, 0.0, None, False)
    assert [new[f"pxtr_{task}"] for task in TASKS] == pytest.approx(pxtr[1].tolist())
    assert lone[f"pxtr_{TASKS[0]}"] is None
    assert log.pages.to_pylist() == [{"page_id": new["page_id"], "item_id": [1000, NEW_ITEM, 1003]}]
    assert log.tasks[TASKS[0]] == 2.0
    assert log.actions == ("buy",)
    items = {row["item_id"]: row for row in log.items.to_pylist()}
    assert (items[NEW_ITEM]["duration_ms"], items[NEW_ITEM]["author_id"], items[NEW_ITEM]["vector"]) == (900, 5, [1.0, 2.0])
    known = collected.run.published
    assert items[1003]["duration_ms"] == int(known.item_float[2, 0])
    assert items[1003]["upload_ms"] == known.item_upload_ms[2]
    assert log.users.to_pylist()[0] == {"user_id": 1, "categories": [4], "floats": [0.5]}
    assert list(tmp_path.glob("log.*")) == []


def test_what_is_no_message_is_counted_and_the_rest_exported(collected: Collected, tmp_path: Path) -> None:
    item = ItemChange(item_id=NEW_ITEM, changed_ms=START_MS, duration_ms=900)
    collected.log.append("items", [NewRecord(1000, b"no message"), NewRecord(NEW_ITEM, to_msgpack(item))])
    collected.log.append("users", [NewRecord(1, b"\x80")])
    collected.log.append("pages", [NewRecord(1, b"neither")])
    collected.page("p", 1, [NEW_ITEM])
    collected.feedback.append([collected.event("p", 1, NEW_ITEM, 0)])
    log, counts = collected.export(tmp_path / "log")
    assert (counts.unreadable, counts.impressions) == (3, 1)
    assert NEW_ITEM in log.items.column("item_id").to_pylist()


def test_a_log_without_impressions_is_refused_and_what_was_there_stays(collected: Collected, tmp_path: Path) -> None:
    collected.page("p", 1, [1000])
    collected.feedback.append([collected.event("p", 1, 1000, 0)])
    _, before = collected.export(tmp_path / "log")
    collected.feedback.forget(1)
    collected.log.forget(1)
    with pytest.raises(DataError, match="expected impressions, got none"):
        collected.export(tmp_path / "log")
    assert before.impressions == 1
    assert (tmp_path / "log" / "log.json").exists()


def test_a_stopped_export_goes_on(collected: Collected, tmp_path: Path) -> None:
    collected.page("p", 1, [1000])
    collected.feedback.append([collected.event("p", 1, 1000, 0)])

    def stop(share: float) -> None:
        if share > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_log(collected.log, collected.run.published, collected.run.record, tmp_path / "log", name="x", report=stop)
    assert (tmp_path / "log.gathered").exists()
    assert not (tmp_path / "log").exists()
    collected.feedback.append([collected.event("p", 1, 1000, 0, event_id="meanwhile", like=True)])
    log, counts = collected.export(tmp_path / "log")
    assert (counts.pages, counts.events, log.rows) == (1, 2, 1)
    assert log.load().impressions["like"].to_pylist() == [True]


def test_a_run_is_trained_on_what_a_server_collected(collected: Collected, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids, events = collected.run.published.item_id[1:], []
    for day in range(4):
        for user in range(1, 7):
            for visit in range(2):
                page_id, items = f"{day}-{user}-{visit}", rng.choice(ids, 8, replace=False).tolist()
                collected.page(page_id, user, items)
                for position, item in enumerate(items[:5]):
                    ms = START_MS + day * DAY_MS + visit * 3_600_000 + position * 9000
                    liked, watch_ms = bool(rng.random() < 0.4), int(rng.integers(0, 40_000))
                    events.append(
                        collected.event(page_id, user, item, position, impression_ms=ms, like=liked, watch_ms=watch_ms)
                    )
    collected.feedback.append(events)
    log, counts = collected.export(tmp_path / "log")
    assert counts.impressions == len(events) == log.rows
    run = train(log, out=tmp_path / "trained", seeds=1, config=QUICK)
    assert run.record.data_digest == log.digest()
    assert run.record.spec.tasks == TASKS
