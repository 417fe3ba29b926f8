from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from pocketrank.cloud.pages.engine import PageEngine, fill_stores, open_engine
from pocketrank.cloud.pages.live_run import LiveRun
from pocketrank.cloud.pages.maker import PageMaker
from pocketrank.cloud.pipeline.config import PipelineConfig
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.streams.event_log import NewRecord
from pocketrank.cloud.streams.messages import ItemChange, ParameterPart, ParameterTable
from pocketrank.cloud.streams.parameters import sealed
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.cloud.training.run import Run
from pocketrank.device.codec import from_block, to_msgpack
from pocketrank.device.contract import PageRequest
from tests.cloud.serving.live import request
from tests.cloud.small_published import SmallRun, small_run

RUN = "the digest of the run"


class Live:
    """An engine, what is applied to it, and the log of the topics."""

    def __init__(self, run: SmallRun, log: SqliteEventLog, stack: ExitStack) -> None:
        self.folder, self.log, self._stack = run.folder, log, stack
        self.engine, self.live = self.other()

    def other(self) -> tuple[PageEngine, LiveRun]:
        """Open the run again, as another process does."""
        config = ServingConfig(pipeline=PipelineConfig())
        opened = Run.open(self.folder)
        fill_stores(opened, config)
        engine = self._stack.enter_context(open_engine(opened, config, threads=1))
        return engine, LiveRun(engine, opened.published, self.log, RUN)

    def follow(self) -> None:
        self.live.follow(lambda change: change())

    def put(self, *items: int, **attributes: Any) -> None:
        for item in items:
            self.log.append("items", [NewRecord(item, to_msgpack(ItemChange(item_id=item, changed_ms=1, **attributes)))])

    def remove(self, *items: int) -> None:
        self.put(*items, removed=True)

    def publish(self, sequence: int, rows: dict[int, float], **more: Any) -> bytes:
        """Append an increment in which each item's rows have one value."""
        record = sealed(increment(self.engine, sequence, rows, **more))
        self.log.append("parameters", [NewRecord(sequence, record)])
        return record

    def row(self, item: int) -> float:
        """The value of an item's row, in the first column."""
        at = self.engine.catalogue.positions.one(item)
        return float(self.engine.catalogue.rows.columns["item_row"][at, 0])

    def page(self, size: int = 200, **more: Any) -> list[int]:
        """The items of a page of user 1."""
        asked: PageRequest = request(size=size, **more)
        config = replace(PipelineConfig(), page=replace(PipelineConfig().page, size_max=500))
        page = PageMaker(self.engine, config)(asked)
        items: list[int] = from_block(page.candidates.item_id).tolist()
        return items


def increment(engine: PageEngine, sequence: int, rows: dict[int, float], **more: Any) -> ParameterPart:
    columns = engine.catalogue.rows.columns

    def filled(name: str) -> bytes:
        column = columns[name]
        return np.stack([np.full(column.shape[1:], value, column.dtype) for value in rows.values()]).tobytes() if rows else b""

    table = ParameterTable(
        ids=np.array(list(rows), "<i8").tobytes(),
        columns={name: filled(name) for name in ("item_row", "item_identity")},
        removed=np.array(more.pop("removed", ()), "<i8").tobytes(),
    )
    fields: dict[str, Any] = {"kind": "increment", "run": RUN, "published_ms": 0, **more}
    return ParameterPart(sequence=sequence, items=table, **fields)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Live]:
    with ExitStack() as stack:
        log = SqliteEventLog(tmp_path / "events")
        stack.callback(log.close)
        yield Live(small_run(tmp_path / "run"), log, stack)


def test_a_new_item_is_in_tables_filters_and_indexes(world: Live) -> None:
    world.put(1 << 40, duration_ms=9000, author_id=77, category=3, upload_ms=1_699_999_000_000)
    world.follow()
    catalogue = world.engine.catalogue
    at = catalogue.positions.one(1 << 40)
    assert at == len(catalogue) - 1
    assert (catalogue.author[at], catalogue.upload_ms[at], catalogue.floats[at, 0]) == (77, 1_699_999_000_000, 9000)
    assert world.engine.filters.allowed[at]
    assert catalogue.by_freshness[0] == at
    assert at in catalogue.by_popularity
    assert all(len(index) == at for index in world.engine.indexes.values())
    assert 1 << 40 in world.page()
    assert world.live.counts["items_put"] == 1


def test_a_removed_item_is_on_no_page_until_it_is_put_again(world: Live) -> None:
    item = world.page()[0]
    row = world.row(item)
    world.remove(item)
    world.follow()
    assert item not in world.page()
    world.put(item, duration_ms=5000)
    world.follow()
    assert item in world.page()
    assert world.row(item) == row, "it has what was learned of it"
    assert world.engine.catalogue.floats[world.engine.catalogue.positions.one(item), 0] == 5000


def test_positions_do_not_depend_on_how_much_is_read_at_a_time(world: Live) -> None:
    def put_and_removed() -> None:
        for item in (901, 902, 903):
            world.put(item, duration_ms=item)
        world.remove(902)
        world.put(901, duration_ms=1)
        world.remove(904)

    for _ in range(2):
        for change in range(6):
            del change
            world.follow()
        put_and_removed()
    world.follow()
    other, live = world.other()
    live.follow(lambda change: change())
    for name, column in other.catalogue.rows.columns.items():
        assert np.array_equal(column, world.engine.catalogue.rows.columns[name], equal_nan=column.dtype.kind == "f"), name
    assert np.array_equal(other.catalogue.removed, world.engine.catalogue.removed)


def test_increments_are_applied_once_and_in_turn(world: Live) -> None:
    first, second = (int(item) for item in world.engine.catalogue.item_id[1:3])
    record = world.publish(1, {first: 1.0})
    world.follow()
    assert (world.row(first), world.live.sequence) == (1.0, 1)
    world.publish(2, {first: 2.0, second: 3.0})
    world.log.append("parameters", [NewRecord(1, record)])
    world.follow()
    assert (world.row(first), world.row(second), world.live.sequence) == (2.0, 3.0, 2)
    assert (world.live.counts["increments"], world.live.counts["increments_repeated"]) == (2, 1)


def test_what_is_damaged_or_of_another_run_changes_nothing(world: Live) -> None:
    item = int(world.engine.catalogue.item_id[1])
    before = world.row(item)
    good = sealed(increment(world.engine, 1, {item: 5.0}))
    for wrong in (
        good[:-3],
        good[:40] + b"\x00" + good[41:],
        b"",
        b"\xc1",
        sealed(increment(world.engine, 1, {}, run="other")),
    ):
        world.log.append("parameters", [NewRecord(1, wrong)])
    world.log.append("items", [NewRecord(1, b"\xc1")])
    world.follow()
    assert (world.row(item), world.live.sequence) == (before, 0)
    assert world.live.counts["parameters_unreadable"] == 4
    assert world.live.counts["items_unreadable"] == 1
    world.publish(1, {item: 6.0})
    world.follow()
    assert world.row(item) == 6.0


def test_after_a_gap_it_reads_on_from_the_last_snapshot(world: Live) -> None:
    first, second, third = (int(item) for item in world.engine.catalogue.item_id[1:4])
    untouched = world.row(third)
    world.publish(1, {third: 9.0})
    world.follow()
    snapshot = sealed(increment(world.engine, 3, {first: 3.0}, kind="snapshot"))
    place = world.log.ends("parameters")
    world.log.commit("parameters", {"parameters": place}, "parameters", [NewRecord(3, snapshot)])
    world.publish(4, {second: 4.0})
    world.publish(6, {second: 6.0})
    world.follow()
    assert world.live.sequence == 4
    assert (world.row(first), world.row(second)) == (3.0, 4.0)
    assert world.row(third) == untouched, "the snapshot has no row of it"
    world.follow()
    assert world.live.counts["catch_ups"] <= 2, "a gap that no snapshot closes is not read again and again"
    world.publish(5, {second: 5.0})
    world.publish(6, {second: 6.0})
    world.follow()
    assert (world.live.sequence, world.row(second)) == (6, 6.0)


def test_a_process_that_starts_has_what_the_others_have(world: Live) -> None:
    first, second = (int(item) for item in world.engine.catalogue.item_id[1:3])
    parts = [increment(world.engine, 7, {item: 7.0}, kind="snapshot", part=i, of=2) for i, item in enumerate((first, second))]
    records = [NewRecord(7, sealed(part)) for part in parts]
    world.publish(3, {first: 1.0})
    world.log.commit("parameters", {"parameters": world.log.ends("parameters")}, "parameters", records)
    world.publish(8, {second: 8.0})
    engine, live = world.other()
    live.follow(lambda change: change())
    columns, positions = engine.catalogue.rows.columns, engine.catalogue.positions
    assert [columns["item_row"][positions.one(item), 0] for item in (first, second)] == [7.0, 8.0]
    assert live.sequence == 8


def test_rows_of_an_item_that_comes_later_wait_for_it(world: Live) -> None:
    world.publish(1, {1 << 41: 4.0})
    world.follow()
    world.put(1 << 41, duration_ms=1000)
    world.follow()
    assert world.row(1 << 41) == 4.0
    world.publish(2, {}, removed=[1 << 41])
    world.follow()
    assert world.row(1 << 41) != 4.0, "the rows of its attributes again"
