"""Training samples from an impression log: events, lists and rows, as flat arrays.

They are three views of a part of the log that is in memory, a *window*:

- **events**: the impressions, sorted by user and time. A user's latest events of earlier windows stand before them, and in the
  first window the history from before the log. A user's past is a slice of these arrays.
- **lists**: the candidates that a ranker scored for one request, with only the events before the request as history. If the log
  has pages, a list is a page, whether it was shown or not. Otherwise (KuaiRand) a list is a *pseudo-list*: consecutive rows of
  a user within `list_days`, at most `list_max` of them.
- **rows**: one per logged impression: its list, its slot in the list, and the slice of events that the device had seen by then.

Item and user indices are positions in `item_ids` and `user_ids`; index 0 is unknown or padding. A small log is one window
(`build_samples`). A large one is read window by window (`SampleStream`), so that memory grows with the items and users alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pocketrank.cloud.data.days import day_of, day_rows
from pocketrank.cloud.data.entities import Entities, Scalar, column, entities_of, index_of, item_codes
from pocketrank.cloud.data.features import FeatureConfig, RecentEvents, Statistics
from pocketrank.cloud.data.feedback import FEEDBACK_FLOATS, HISTORY_FEEDBACK
from pocketrank.cloud.data.latest_events import LatestEvents, PastEvents
from pocketrank.cloud.data.lists import Lists, run_start
from pocketrank.cloud.data.log import Log
from pocketrank.cloud.data.past_counts import PastCounts
from pocketrank.cloud.data.schema import LABELS, DataError
from pocketrank.cloud.time_zones import DAY_MS, HOUR_MS, day_start_ms, local_ms
from pocketrank.device.contract import EFFECTIVE_VIEW_MS, FloatFeature

__all__ = ["SampleConfig", "SampleStream", "Samples", "Span", "WindowConfig", "build_samples"]

Int = NDArray[np.int64]
Float = NDArray[np.float32]

_MEAN_ROWS = 1 << 18
"""First impressions whose means statistics are compared with."""
_LISTS = 256
"""Lists whose statistics are computed at a time."""


@dataclass(frozen=True)
class SampleConfig:
    """Tasks and sizes of samples."""

    tasks: tuple[str, ...]
    """Label columns that the models predict, in the order of their outputs."""
    history_max: int = 50
    """Largest number of past events in the inputs of the cloud's models."""
    events_max: int = 50
    """Largest number of events in the inputs of the device model, the length of the device's ring buffer."""
    list_max: int = 30
    """Largest number of candidates in a list."""
    list_days: int = 2
    """Largest number of days in a pseudo-list."""
    history_list: int = 3
    """Length of the lists of events from before the log, on which models are pretrained."""
    time_zone: str = "UTC"
    """IANA name of the zone whose days and hours are those of the log."""
    test_from: date | None = None
    """First test day. A pseudo-list never extends over its beginning, so that no list is partly training and partly test."""
    days_max: int = 400
    """Largest number of days, about. Where a log has more, such as years of ratings, consecutive ones count as one day until
    they have an even share of the rows."""
    features: FeatureConfig = FeatureConfig()
    """Features of the moment."""

    @property
    def past_events(self) -> int:
        """Number of a user's latest events that the cloud's models see in one way or another."""
        return max(self.history_max, self.features.user_events if self.features else 0)


@dataclass(frozen=True)
class WindowConfig:
    """How much of a log is in memory at a time."""

    rows: int = 1 << 18
    """Rows of a window, about; it has at least the days of one pseudo-list."""
    events: int = 1 << 21
    """Events of a window, with those from before it. A window with more is cut by users into shards."""


@dataclass(frozen=True)
class Samples(Entities):
    """A window of a log as arrays, of E events, L lists of at most N candidates, R rows, and K tasks."""

    config: SampleConfig
    feedback_floats: tuple[FloatFeature, ...]
    history_feedback: tuple[str, ...]
    scenes: int
    """Number of scene codes in the whole log: 0 is unknown, then the scenes from 0."""
    days: int
    """Number of days of the whole log."""
    has_history: bool
    """Whether the log has events from before it."""
    learn_until: int
    """First test day, or `days` if there is none."""
    day_start: Int  # [days] each day, counted in days of the calendar from the first
    user_start: Int  # [U + 2] first event of each user
    event_item: Int  # [E]
    event_user: Int  # [E]
    event_ms: Int  # [E], 0 before the log
    event_position: Int  # [E] in the session, or in the user's order
    event_place: Int  # [E] in the user's order
    event_session: Int  # [E], -1 unknown
    event_feedback: Float  # [E, len(feedback_floats)], scaled, clipped, defaults filled in
    event_history: Float  # [E, len(history_feedback)]
    event_labels: Float  # [E, K], NaN unknown
    event_pxtr: Float  # [E, K] scores from before the impression, NaN unknown
    event_statistics: Float  # [E, S] those of the item in its list
    event_day: Int  # [E] day of the log, -1 before it
    event_fresh: NDArray[np.bool_]  # [E] whether it is of this window, and not of an earlier one
    list_user: Int  # [L]
    list_event: Int  # [L] the history of a list ends before this event
    list_day: Int  # [L], -1 for lists cut from before the log
    list_item: NDArray[np.int32]  # [L, N], 0 = padding
    list_hour: NDArray[np.int8]  # [L, N] 1..24, 0 unknown; of a page's request, or of each row of a pseudo-list
    list_scene: NDArray[np.int32]  # [L, N]
    list_labels: Float  # [L, N, K], NaN where not shown or unknown
    list_statistics: Float  # [L, N, S] `features`, as of the beginning of the list
    row_event: Int  # [R]
    row_list: Int  # [R]
    row_slot: Int  # [R]
    row_events_from: Int  # [R] the device's events are [row_events_from, row_event)
    row_position: Int  # [R] the `position` in the device's context
    list_shown: Int  # [L, N] event at which a slot was shown; E where it never was; -1 where the list is no real page
    first_day: int  # days since the epoch of day 0
    statistics: Statistics

    @property
    def first_window_day(self) -> int:
        """First day of this window."""
        return int(self.event_day[self.row_event].min())

    @property
    def last_window_day(self) -> int:
        """Last day of this window."""
        return int(self.event_day[self.row_event].max())

    def with_pxtr(self, pxtr: Float) -> Samples:
        """Return the same samples with scores [R, K] of the rows."""
        events = self.event_pxtr.copy()
        events[self.row_event] = pxtr
        return replace(self, event_pxtr=events)

    def fresh(self) -> PastEvents:
        """Return the events of this window."""
        at, names = self.event_fresh, [field.name for field in fields(PastEvents)]
        return PastEvents(**{name: getattr(self, f"event_{name}")[at] for name in names})


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
        self.scenes = survey.scenes
        self.first_day = int(survey.day[0])
        """Days since the epoch of day 0."""
        self.entities = entities_of(log, self.first_day)
        actions = tuple(FloatFeature(name=name, min=0, max=1) for name in log.actions if name not in LABELS)
        self.feedback_floats = tuple(f for f in (*FEEDBACK_FLOATS, *actions) if survey.known[f.name])
        names = tuple(feature.name for feature in actions)
        try:
            self.history_feedback = (*HISTORY_FEEDBACK, *names, *config.features.labels(names))
            self.statistics = self._statistics()
        except ValueError as error:
            raise DataError(log.name, str(error)) from error
        # Days, merged where there are too many, at the borders of pseudo-lists.
        self._cut = (config.test_from - date(1970, 1, 1)).days if config.test_from else self.first_day
        day_start = [self.first_day]
        share, gathered = self.rows / config.days_max, 0
        for day, rows in zip(survey.day.tolist(), survey.rows.tolist(), strict=True):
            at_border = (day - self._cut) // config.list_days > (day_start[-1] - self._cut) // config.list_days
            crosses = day >= self._cut > day_start[-1]
            if crosses or len(survey.day) <= config.days_max or (gathered >= share and at_border):
                if day > day_start[-1]:
                    day_start.append(day)
                gathered = 0
            gathered += rows
        if len(survey.day) <= config.days_max and survey.day[-1] - self.first_day < config.days_max:
            day_start = list(range(self.first_day, int(survey.day[-1]) + 1))  # with days without impressions
        self.day_start = np.array(day_start, np.int64) - self.first_day
        self.days = len(day_start)
        """Number of days."""
        test_day = self._cut - self.first_day
        self.learn_until = int(np.searchsorted(self.day_start, test_day)) if config.test_from else self.days
        """First test day, or `days` if there is none."""
        self.day_rows = np.bincount(self._day(survey.day), survey.rows, self.days).astype(np.int64)
        """[days] impressions of each day"""
        self._survey = survey

    def _statistics(self) -> Statistics:
        """Return the statistics of the config, less the means of the first impressions."""
        means = np.zeros(len(self.history_feedback))
        if self.config.features.statistics:
            first = next(self.log.parts()).slice(0, _MEAN_ROWS)
            means = self.history_values(first).mean(0)
        codes = item_codes(self.entities)
        return Statistics(self.config.features, self.history_feedback, means.tolist(), codes, self.config.time_zone)

    def history_values(self, impressions: pa.Table) -> Float:
        """Return the `history_feedback` [R, F] of impressions."""
        watch_s = column(impressions, "watch_ms", np.float32) / 1000
        item = index_of(self.entities.item_ids, column(impressions, "item_id", np.int64))
        duration_s = self.entities.item_duration_s[item]
        # Where a log has no label of effective views, the watch decides, as it does for the events of serving.
        effective = column(impressions, "effective_view", np.float32)
        by_watch = watch_s >= np.minimum(np.where(duration_s > 0, duration_s, np.inf), EFFECTIVE_VIEW_MS / 1000)
        known = {
            "watch_log": np.log1p(watch_s),
            "engaged": np.fmax(column(impressions, "click", np.float32), np.where(np.isnan(effective), by_watch, effective)),
            "logged": np.ones_like(watch_s),
        }
        values = [known[name] if name in known else column(impressions, name, np.float32) for name in self.history_feedback]
        history: Float = np.nan_to_num(np.stack(values, 1)).astype(np.float32)
        return history

    def _day(self, day: Int) -> Int:
        """Return the day of the samples of calendar days."""
        return np.searchsorted(self.day_start, day - self.first_day, "right") - 1

    def day_of(self, index: int) -> date:
        """Return the calendar date on which a day begins."""
        return day_of(self.first_day + int(self.day_start[index]))

    def new_latest(self) -> LatestEvents:
        """Return an empty ring of the latest events of each user."""
        return LatestEvents(
            len(self.entities.user_ids),
            max(self.config.past_events, self.config.events_max),
            statistics=len(self.statistics.names),
            feedback=len(self.feedback_floats),
            history=len(self.history_feedback),
            tasks=len(self.config.tasks),
        )

    def spans(self, latest: LatestEvents | None = None) -> Iterator[Span]:
        """Return the spans of days in the order of time.

        `latest` is where the events of a span go once the caller has called `Span.done` for each of its shards, before the next
        span is asked for.
        """
        latest = self.new_latest() if latest is None else latest
        counts = self._new_counts()
        block = (self.day_start + self.first_day - self._cut) // self.config.list_days
        first = index = 0
        while first < self.days:
            end, rows = first, 0
            while end < self.days:
                after = end + 1
                while after < self.days and block[after] == block[end]:
                    after += 1
                more = int(self.day_rows[end:after].sum())
                large = rows + more > self.windows.rows
                if end > first and (large or (end == self.learn_until and self.rows > self.windows.rows)):
                    break
                rows, end = rows + more, after
            if rows:
                if counts is not None:
                    counts.enter(*self._counted(first, end))
                yield Span(self, latest, counts, index, first, end, rows, self._shards(latest, index, rows))
                index += 1
            first = end

    def last_events(self) -> tuple[Int, Int, Float]:
        """Return the positions of the items, the times and the `history_feedback` of the impressions of the last days, as many
        as the longest window of statistics has."""
        last = int(self._survey.day[-1])
        since = day_start_ms(last - self.config.features.days_max + 1, self.config.time_zone)
        found = []
        for part in self.log.parts(since) if self.config.features else ():
            at = column(part, "item_id", np.int64), column(part, "impression_ms", np.int64)
            found.append((index_of(self.entities.item_ids, at[0]), at[1], self.history_values(part)))
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, len(self.history_feedback)), np.float32)
        item, ms, values = zip(*found, strict=True)
        return np.concatenate(item), np.concatenate(ms), np.concatenate(values)

    def _new_counts(self) -> PastCounts | None:
        features = self.config.features
        if not features.shared:
            return None
        codes = {key: self.statistics.codes[key] for key in features.shared}
        return PastCounts(codes, self.statistics.width, features.days_max, self.config.time_zone)

    def _counted(self, first: int, end: int) -> tuple[Int, Int, Float]:
        """Return item, time and what is counted of the impressions of days `first` to `end` - 1."""
        parts = [
            (
                index_of(self.entities.item_ids, column(part, "item_id", np.int64)),
                column(part, "impression_ms", np.int64),
                self.statistics.values(self.history_values(part)),
            )
            for part in self._parts(first, end)
        ]
        item, ms, values = zip(*parts, strict=True)
        return np.concatenate(item), np.concatenate(ms), np.concatenate(values)

    def _shards(self, latest: LatestEvents, index: int, rows: int) -> int:
        """Return the number of shards of a span, from an estimate of its events."""
        users = int((latest.count > 0).sum())
        kept = int(np.minimum(latest.count, latest.length).sum()) / max(1, users)
        events = rows + int(min(rows, users) * kept)
        if index == 0:
            events += pc.sum(pc.list_value_length(self.log.history["item_id"])).as_py() or 0
        return max(-(-events // self.windows.events), -(-rows // (4 * self.windows.rows)))

    def _parts(self, first: int, end: int) -> Iterator[pa.Table]:
        """Return the impressions of days `first` to `end` - 1."""
        # A time zone is at most 14 hours ahead of UTC, and 12 behind.
        last = self.day_start[end] if end < self.days else self._survey.day[-1] - self.first_day + 1
        since, until = (int(self.first_day + day) * DAY_MS for day in (self.day_start[first] - 1, last + 1))
        for part in self.log.parts(since, until):
            day = self._day(local_ms(column(part, "impression_ms", np.int64), self.config.time_zone) // DAY_MS)
            if day[0] >= end:
                return
            if day[-1] >= first:
                inside = np.searchsorted(day, [first, end])
                yield part.slice(inside[0], inside[1] - inside[0])


@dataclass(frozen=True)
class Span:
    """Consecutive days of a log, whose samples are made in one or more shards of users."""

    stream: SampleStream
    latest: LatestEvents
    counts: PastCounts | None
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
        """Return the samples of a shard: of the users whose index leaves this remainder. Raises `DataError`."""
        return _Window(self, shard).samples()

    def done(self, samples: Samples) -> None:
        """Take the events of a shard along to the next span."""
        self.latest.add(samples.fresh())


class _Window:
    """The arrays of one shard of a span, step by step."""

    def __init__(self, span: Span, shard: int) -> None:
        stream, shards = span.stream, span.shards
        self.stream, self.config, self.entities = stream, stream.config, stream.entities
        parts = []
        for part in stream._parts(span.first, span.end):
            if shards > 1:
                user = index_of(self.entities.user_ids, column(part, "user_id", np.int64))
                part = part.filter(pa.array(user % shards == shard))
            parts.append(part)
        self.table = pa.concat_tables(parts)
        user_ids, item_ids = self.entities.user_ids, self.entities.item_ids
        before = _history(stream.log.history if span.index == 0 else stream.log.history.slice(0, 0))
        history_user = index_of(user_ids, before[0])
        if shards > 1:
            kept = history_user % shards == shard
            history_user, before = history_user[kept], tuple(values[kept] for values in before)
        user = index_of(user_ids, column(self.table, "user_id", np.int64))
        self.past = span.latest.take(np.unique(user))
        self.history_long, self.history_like = before[2], before[3]
        # Events before the order: those of earlier windows, the history from before the log, this window's.
        self.carried, self.n_history = len(self.past.user), len(history_user)
        n_old = self.carried + self.n_history
        ms, nothing = column(self.table, "impression_ms", np.int64), np.zeros(self.n_history, np.int64)
        position = np.concatenate([self.past.position, nothing - 1, column(self.table, "position", np.int64)])
        user = np.concatenate([self.past.user, history_user, user])
        item = np.concatenate(
            [self.past.item, index_of(item_ids, before[1]), index_of(item_ids, column(self.table, "item_id", np.int64))]
        )
        event_ms = np.concatenate([self.past.ms, nothing, ms])
        # Sorted by user, time and, within a millisecond, by position, as on the device and in serving.
        self.order = np.lexsort((np.arange(len(user)), position, event_ms, user))
        self.source = self.order - n_old  # row of the window, negative for others
        self.logged = self.source >= 0
        self.fresh = self.order >= self.carried
        self.user, self.item, self.ms, self.position = (x[self.order] for x in (user, item, event_ms, position))
        self.counted, self.counts = span.latest.count, span.counts

    def of_events(self, values: NDArray[Scalar], fill: Any, past: NDArray[Any] | None = None) -> NDArray[Scalar]:
        """Return a column [E, ...] from that of the window's rows and, if given, of the past events."""
        out = np.full((len(self.order), *values.shape[1:]), fill, values.dtype)
        out[self.logged] = values[self.source[self.logged]]
        if past is not None:
            out[~self.fresh] = past[self.order[~self.fresh]]
        return out

    def samples(self) -> Samples:
        stream, config, table = self.stream, self.config, self.table
        entities = {field.name: getattr(self.entities, field.name) for field in fields(Entities)}
        past, logged, user = self.past, self.logged, self.user
        n_users = len(self.entities.user_ids)
        clock_ms = local_ms(column(table, "impression_ms", np.int64), config.time_zone)
        real_day = clock_ms // DAY_MS
        event_day = self.of_events(stream._day(real_day), -1, past.day)
        labels = self._labels()
        feedback = np.stack([_feature(column(table, f.name, np.float32), f) for f in stream.feedback_floats], 1)
        feedback = self.of_events(feedback, 0.0, past.feedback)

        # A user's order goes on from window to window.
        user_start = np.searchsorted(user, np.arange(n_users + 1)).astype(np.int64)
        carried = np.bincount(user[~self.fresh], minlength=n_users)
        place = np.arange(len(user)) - user_start[user] + (self.counted - carried)[user]
        session = self.of_events(column(table, "session_id", np.int64), -1, past.session)
        page = self.of_events(column(table, "page_id", np.int64), -1)
        has_session = session >= 0

        # Lists.
        lists = Lists(
            sizes=(config.list_max, config.history_list),
            user=user,
            item=self.item,
            listed=self.fresh,
            block=np.where(logged, self.of_events(real_day - stream._cut, 0) // config.list_days, Lists.BEFORE),
            page=page,
        )
        if (page >= 0).any():
            lists.fill_pages(stream.log, self.entities.item_ids, self.item, page)
        lists.fill(
            labels,
            self.of_events(clock_ms // HOUR_MS % 24 + 1, 0).astype(np.int8),
            self.of_events(column(table, "scene", np.int64) + 1, 0).astype(np.int32),
        )

        # Rows: the events of a device begin with its session, or else with the log.
        row_event = np.flatnonzero(logged)
        first_logged = user_start[user] + np.bincount(user[event_day < 0], minlength=n_users)[user]
        # Session ids may be unique for each user only.
        history = self._history()
        statistics = self._statistics(lists, user_start, history)
        event_statistics = self.of_events(np.zeros((len(table), statistics.shape[2]), np.float32), 0.0, past.statistics)
        event_statistics[row_event] = statistics[lists.of_event[row_event], lists.slot[row_event]]
        session_first = np.maximum(run_start(np.where(has_session, session, -1 - user)), user_start[user])
        place_in_session = np.where(has_session, np.arange(len(user)) - session_first, lists.slot)
        events_from = np.where(has_session, session_first, first_logged)[row_event]
        return Samples(
            **entities,
            config=config,
            feedback_floats=stream.feedback_floats,
            history_feedback=stream.history_feedback,
            scenes=stream.scenes,
            days=stream.days,
            has_history=len(stream.log.history) > 0,
            learn_until=stream.learn_until,
            day_start=stream.day_start,
            user_start=np.append(user_start, len(user)),
            event_item=self.item,
            event_user=user,
            event_ms=self.ms,
            event_position=np.where(self.position >= 0, self.position, place),
            event_place=place,
            event_session=session,
            event_feedback=feedback,
            event_history=history,
            event_labels=labels,
            event_pxtr=self._pxtr(),
            event_statistics=event_statistics,
            event_day=event_day,
            event_fresh=self.fresh,
            list_user=lists.user,
            list_event=lists.event,
            list_day=event_day[lists.event],
            list_item=lists.item,
            list_hour=lists.hour,
            list_scene=lists.scene,
            list_labels=lists.labels,
            list_statistics=statistics,
            row_event=row_event,
            row_list=lists.of_event[row_event],
            row_slot=lists.slot[row_event],
            row_events_from=np.maximum(events_from, row_event - config.events_max),
            row_position=np.where(self.position >= 0, self.position, place_in_session)[row_event],
            list_shown=lists.shown,
            first_day=stream.first_day,
            statistics=stream.statistics,
        )

    def _statistics(self, lists: Lists, user_start: Int, history: Float) -> Float:
        """Return the statistics [L, N, S] of lists as of their beginning; those from before the log have none."""
        statistics, config = self.stream.statistics, self.config.features
        out = np.zeros((*lists.item.shape, len(statistics.names)), np.float32)
        dated = np.flatnonzero(self.ms[lists.event] > 0) if statistics.names else np.zeros(0, np.int64)
        for chunk in np.array_split(dated, max(1, -(-len(dated) // _LISTS))):
            end, item = lists.event[chunk], lists.item[chunk]
            ms, day, first = (
                self.ms[end],
                statistics.day(self.ms[end]),
                np.maximum(user_start[lists.user[chunk]], end - config.user_events),
            )
            h = max(1, int((end - first).max(initial=0)))
            index = end[:, None] - h + np.arange(h)
            real = index >= first[:, None]
            index = np.where(real, index, 0)
            recent = RecentEvents(self.item[index] * real, self.ms[index] * real, history[index])

            def shared(
                key: str, days: int, code: NDArray[np.integer[Any]], ms: Int = ms, day: Int = day
            ) -> NDArray[np.float64]:
                assert self.counts is not None
                since = statistics.since(day, days)[:, None]
                return self.counts.between(
                    key, code, np.broadcast_to(since, code.shape), np.broadcast_to(ms[:, None], code.shape)
                )

            out[chunk] = statistics(item, day, recent, shared)
        return out

    def _labels(self) -> Float:
        """Return the labels of events; of the history from before the log only two are known."""
        values = np.stack([column(self.table, task, np.float32) for task in self.config.tasks], 1)
        labels = self.of_events(values, np.nan, self.past.labels)
        known = {"long_view": self.history_long, "like": self.history_like}
        old = self.fresh & ~self.logged
        for k, task in enumerate(self.config.tasks):
            if task in known:
                labels[old, k] = known[task][self.order[old] - self.carried]
        return labels

    def _history(self) -> Float:
        """Return the `history_feedback` of events."""
        names = self.stream.history_feedback
        history = self.of_events(self.stream.history_values(self.table), 0.0, self.past.history)
        old = self.fresh & ~self.logged
        for name, marks in (("long_view", self.history_long), ("like", self.history_like)):
            history[old, names.index(name)] = marks[self.order[old] - self.carried]
        return history

    def _pxtr(self) -> Float:
        """Return the log's own scores, NaN where it has none."""
        names, rows = [f"pxtr_{task}" for task in self.config.tasks], len(self.table)
        unknown = np.full(rows, np.nan, np.float32)
        own = [column(self.table, name, np.float32) if name in self.table.column_names else unknown for name in names]
        return self.of_events(np.stack(own, 1), np.nan, self.past.pxtr)


def _history(table: pa.Table) -> tuple[Int, Int, Float, Float]:
    lists = {n: table.column(n).combine_chunks() for n in ("item_id", "long_view", "like")}
    lengths = np.asarray(pc.list_value_length(lists["item_id"]).to_numpy(zero_copy_only=False), np.int64)
    user = np.repeat(column(table, "user_id", np.int64), lengths)
    values = {n: c.flatten().to_numpy(zero_copy_only=False) for n, c in lists.items()}
    return user, values["item_id"], values["long_view"].astype(np.float32), values["like"].astype(np.float32)


def _feature(values: Float, feature: FloatFeature) -> Float:
    scaled = np.where(np.isnan(values), feature.default, values * feature.scale)
    return np.clip(scaled, feature.min, feature.max).astype(np.float32)
