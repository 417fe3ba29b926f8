"""A log as windows of samples: a small one is one window (`build_samples`), a large one is read window by window.

A window is a *span* of days. A span with too many events for memory is cut by users into *shards*, each of which is a window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import date
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pocketrank.cloud.data.days import day_of, day_rows
from pocketrank.cloud.data.entities import Entities, column, entities_of, index_of, item_codes
from pocketrank.cloud.data.features import Statistics
from pocketrank.cloud.data.feedback import FEEDBACK_FLOATS, HISTORY_FEEDBACK
from pocketrank.cloud.data.latest_events import LatestEvents
from pocketrank.cloud.data.log import Log
from pocketrank.cloud.data.past_counts import PastCounts
from pocketrank.cloud.data.samples import LogFacts, SampleConfig, Samples, columns_of, history_values, window_samples
from pocketrank.cloud.data.schema import LABELS, DataError
from pocketrank.cloud.time_zones import DAY_MS, day_start_ms, local_ms
from pocketrank.device.contract import FloatFeature

__all__ = ["SampleStream", "Span", "WindowConfig", "build_samples"]

Int = NDArray[np.int64]
Float = NDArray[np.float32]

_MEAN_ROWS = 1 << 18
"""First impressions whose means statistics are compared with."""
_USER_BLOCK = 64
"""Largest number of users with neighbouring indices that are in one shard together."""


@dataclass(frozen=True)
class WindowConfig:
    """How much of a log is in memory at a time."""

    rows: int = 1 << 18
    """Rows of a window, about; it has at least the days of one pseudo-list."""
    events: int = 1 << 21
    """Events of a window, with those from before it. A window with more is cut by users into shards."""


def build_samples(log: Log, config: SampleConfig) -> Samples:
    """Return the samples of the whole `log` in one window. Raises `DataError` for a task without a label in the log."""
    everything = WindowConfig(rows=2**62, events=2**62)
    (span,) = SampleStream(log, config, everything).spans()
    return span.build(0)


@dataclass(frozen=True)
class _Survey:
    """What all windows must agree on, from one pass over the log."""

    day: Int  # [D] days with impressions, counted from 1970, ascending
    rows: Int  # [D] impressions of each
    known: Counter[str]  # by column: how many are not null
    scenes: int

    @classmethod
    def of(cls, log: Log) -> _Survey:
        known: Counter[str] = Counter()
        scenes = [-1]

        def parts() -> Iterator[pa.Table]:
            for part in log.parts():
                known.update({name: len(part) - part[name].null_count for name in part.column_names})
                scenes.append(pc.max(part["scene"]).as_py() if part["scene"].null_count < len(part) else -1)
                yield part

        day, rows = day_rows(parts(), log.time_zone)
        return cls(day, rows, known, max(scenes) + 2)


class SampleStream:
    """A log as windows of samples in the order of time. Raises `DataError` for a task without a label in the log.

    Its memory is that of the items and users, of the latest events of each user, and of one window.
    """

    def __init__(self, log: Log, config: SampleConfig, windows: WindowConfig = WindowConfig()) -> None:
        self.log, self.config, self.windows = log, config, windows
        survey = _Survey.of(log)
        for task in config.tasks:
            if not survey.known.get(task):
                raise DataError(log.name, f"expected labels of task `{task}`, got none", column=task)
        self.rows = int(survey.rows.sum())
        """Number of impressions."""
        first_day = int(survey.day[0])
        border = (config.test_from - date(1970, 1, 1)).days if config.test_from else first_day
        day_start = _day_starts(survey, config, border)
        actions = tuple(FloatFeature(name=name, min=0, max=1) for name in log.actions if name not in LABELS)
        names = (*HISTORY_FEEDBACK, *(feature.name for feature in actions))
        entities = entities_of(log, first_day)
        try:
            names += config.features.labels(names)
            statistics = self._statistics(entities, names)
        except ValueError as error:
            raise DataError(log.name, str(error)) from error
        self.facts = LogFacts(
            **{field.name: getattr(entities, field.name) for field in fields(Entities)},
            config=config,
            feedback_floats=tuple(f for f in (*FEEDBACK_FLOATS, *actions) if survey.known[f.name]),
            history_feedback=names,
            scenes=survey.scenes,
            has_history=len(log.history) > 0,
            first_day=first_day,
            day_start=day_start,
            learn_until=int(np.searchsorted(day_start, border - first_day)) if config.test_from else len(day_start),
            statistics=statistics,
            border=border,
        )
        """What all windows have in common."""
        self.day_rows = np.bincount(self.facts.days_of(survey.day), survey.rows, self.facts.days).astype(np.int64)
        """[days] impressions of each day"""
        self._last_day = int(survey.day[-1])
        self._columns = columns_of(self.facts, log.schema.names)

    def _statistics(self, entities: Entities, names: tuple[str, ...]) -> Statistics:
        """Return the statistics of the config, less the means of the first impressions."""
        means = np.zeros(len(names))
        if self.config.features.statistics:
            means = history_values(entities, names, next(self.log.parts()).slice(0, _MEAN_ROWS)).mean(0)
        return Statistics(self.config.features, names, means.tolist(), item_codes(entities), self.config.time_zone)

    def day_of(self, index: int) -> date:
        """Return the calendar date on which a day begins."""
        return day_of(self.facts.first_day + int(self.facts.day_start[index]))

    def new_latest(self) -> LatestEvents:
        """Return an empty ring of the latest events of each user."""
        return LatestEvents(
            len(self.facts.user_ids),
            max(self.config.past_events, self.config.events_max),
            statistics=len(self.facts.statistics.names),
            feedback=len(self.facts.feedback_floats),
            history=len(self.facts.history_feedback),
            tasks=len(self.config.tasks),
        )

    def spans(self, latest: LatestEvents | None = None) -> Iterator[Span]:
        """Return the spans of days in the order of time.

        `latest` is where the events of a span go once the caller has called `Span.done` for each of its shards, before the next
        span is asked for.
        """
        latest = self.new_latest() if latest is None else latest
        counts = self._new_counts()
        facts = self.facts
        block = facts.blocks_of(facts.first_day + facts.day_start)
        first = index = 0
        while first < facts.days:
            end, rows = first, 0
            while end < facts.days:
                after = end + 1
                while after < facts.days and block[after] == block[end]:
                    after += 1
                more = int(self.day_rows[end:after].sum())
                large = rows + more > self.windows.rows
                if end > first and (large or (end == facts.learn_until and self.rows > self.windows.rows)):
                    break
                rows, end = rows + more, after
            if rows:
                if counts is not None:
                    counts.enter(*self._events(self.parts(first, end)))
                yield Span(self, latest, counts, index, first, end, rows, self._shards(latest, index, rows))
                index += 1
            first = end

    def last_events(self) -> tuple[Int, Int, Float]:
        """Return the positions of the items [E], the times [E] and the `history_feedback` [E, F] of the impressions of the last
        days, as many as the longest window of statistics has."""
        first = self._last_day - self.config.features.days_max + 1
        since = day_start_ms(first, self.config.time_zone)
        return self._events(self.log.parts(since, columns=self._columns) if self.config.features else ())

    def _new_counts(self) -> PastCounts | None:
        return PastCounts(self.facts.statistics) if self.config.features.shared else None

    def _events(self, parts: Iterable[pa.Table]) -> tuple[Int, Int, Float]:
        """Return the positions of the items, the times and the `history_feedback` of impressions."""
        facts = self.facts
        item, ms = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        feedback = [np.zeros((0, len(facts.history_feedback)), np.float32)]
        for part in parts:
            item.append(index_of(facts.item_ids, column(part, "item_id", np.int64)))
            ms.append(column(part, "impression_ms", np.int64))
            feedback.append(history_values(facts, facts.history_feedback, part))
        return np.concatenate(item), np.concatenate(ms), np.concatenate(feedback)

    def _shards(self, latest: LatestEvents, index: int, rows: int) -> int:
        """Return the number of shards of a span, from an estimate of its events."""
        users = int((latest.count > 0).sum())
        kept = int(np.minimum(latest.count, latest.length).sum()) / max(1, users)
        events = rows + int(min(rows, users) * kept)
        if index == 0:
            events += pc.sum(pc.list_value_length(self.log.history["item_id"])).as_py() or 0
        if events <= self.windows.events and rows <= 4 * self.windows.rows:
            return 1
        # Shards are small, because their number does not matter: all of them are scored before any is learned.
        return max(2, -(-2 * events // self.windows.events), -(-rows // self.windows.rows))

    def parts(self, first: int, end: int) -> Iterator[pa.Table]:
        """Return the impressions of days `first` to `end` - 1. Raises `DataError`."""
        # A time zone is at most 14 hours ahead of UTC, and 12 behind.
        facts = self.facts
        last = facts.day_start[end] if end < facts.days else self._last_day - facts.first_day + 1
        since, until = (int(facts.first_day + day) * DAY_MS for day in (facts.day_start[first] - 1, last + 1))
        for part in self.log.parts(since, until, self._columns):
            day = facts.days_of(local_ms(column(part, "impression_ms", np.int64), self.config.time_zone) // DAY_MS)
            if day[0] >= end:
                return
            if day[-1] >= first:
                inside = np.searchsorted(day, [first, end])
                yield part.slice(inside[0], inside[1] - inside[0])


def _day_starts(survey: _Survey, config: SampleConfig, border: int) -> Int:
    """Return the days of a log [days], counted from its first. Too many are merged, at the borders of pseudo-lists."""
    first_day, days = int(survey.day[0]), len(survey.day)
    if days <= config.days_max and survey.day[-1] - first_day < config.days_max:
        return np.arange(survey.day[-1] - first_day + 1)  # with days without impressions
    starts = [first_day]
    share, gathered = int(survey.rows.sum()) / config.days_max, 0
    for day, rows in zip(survey.day.tolist(), survey.rows.tolist(), strict=True):
        at_border = (day - border) // config.list_days > (starts[-1] - border) // config.list_days
        crosses = day >= border > starts[-1]
        if crosses or days <= config.days_max or (gathered >= share and at_border):
            if day > starts[-1]:
                starts.append(day)
            gathered = 0
        gathered += rows
    return np.array(starts, np.int64) - first_day


@dataclass(frozen=True)
class Span:
    """Consecutive days of a log, whose samples are made in one or more shards of users."""

    stream: SampleStream
    latest: LatestEvents
    counts: PastCounts | None
    """Those of all users, if the statistics need them."""
    index: int
    """Number of the span, from 0."""
    first: int
    """First day."""
    end: int
    """Day after the last."""
    rows: int
    """Number of impressions."""
    shards: int
    """Number of shards; 1 but for spans with too many events for memory."""

    def build(self, shard: int) -> Samples:
        """Return the samples of a shard, which are those of some users. Raises `DataError`."""
        stream = self.stream
        facts, log = stream.facts, stream.log
        history = log.history if self.index == 0 else log.history.slice(0, 0)
        if self.shards == 1:
            rows = pa.concat_tables(stream.parts(self.first, self.end))
            return window_samples(facts, rows, history, self.latest, log, self.counts)
        history = history.filter(pa.array(_shard_of(history, facts, self.shards) == shard))
        return window_samples(facts, self._by_shard.table(shard), history, self.latest, log, self.counts)

    def done(self, samples: Samples) -> None:
        """Take the events of a shard along to the next span."""
        self.latest.add(samples.fresh())

    @cached_property
    def _by_shard(self) -> _ShardFiles:
        return _ShardFiles(self)


class _ShardFiles:
    """The impressions of a span by shard, in temporary files, so that the log is read once and not once for each shard."""

    def __init__(self, span: Span) -> None:
        self._folder = TemporaryDirectory(prefix="pocketrank-")  # removed with this object
        writers: list[pa.RecordBatchStreamWriter] = []
        for part in span.stream.parts(span.first, span.end):
            shard = _shard_of(part, span.stream.facts, span.shards)
            order = np.argsort(shard, kind="stable")
            bounds = np.searchsorted(shard[order], np.arange(span.shards + 1))
            rows = part.take(order)
            writers = writers or [pa.ipc.new_stream(self._path(i), rows.schema) for i in range(span.shards)]
            for writer, (start, end) in zip(writers, pairwise(bounds), strict=True):
                writer.write_table(rows.slice(start, end - start))
        for writer in writers:
            writer.close()

    def table(self, shard: int) -> pa.Table:
        with pa.ipc.open_stream(self._path(shard)) as reader:
            return reader.read_all()

    def _path(self, shard: int) -> Path:
        return Path(self._folder.name) / f"{shard}.arrows"


def _shard_of(table: pa.Table, facts: LogFacts, shards: int) -> Int:
    """Return the shard of each row's user. Users have turns in blocks, because their latest events are side by side in a file,
    of which a system maps 64 KB at a time."""
    block = min(_USER_BLOCK, max(1, len(facts.user_ids) // (8 * shards)))
    return index_of(facts.user_ids, column(table, "user_id", np.int64)) // block % shards
