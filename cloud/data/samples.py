"""Training samples from an impression log: events, lists and rows, as flat arrays.

They are three views of a part of the log that is in memory, a *window*:

- **events**: the impressions, sorted by user and time. A user's latest events of earlier windows stand before them, and in the
  first window the history from before the log. A user's past is a slice of these arrays.
- **lists**: the candidates that a ranker scored for one request, with only the events before the request as history. If the log
  has pages, a list is a page, whether it was shown or not. Otherwise (KuaiRand) a list is a *pseudo-list*: consecutive rows of
  a user within `list_days`, at most `list_max` of them.
- **rows**: one per logged impression: its list, its slot in the list, and the slice of events that the device had seen by then.

Item and user indices are positions in `item_ids` and `user_ids`; index 0 is unknown or padding. Which rows make a window is
decided in `sample_stream`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pocketrank.cloud.data.entities import Entities, Scalar, column, index_of
from pocketrank.cloud.data.features import FeatureConfig, RecentEvents, Statistics
from pocketrank.cloud.data.latest_events import LatestEvents, PastEvents
from pocketrank.cloud.data.lists import Lists, run_start
from pocketrank.cloud.data.log import Log
from pocketrank.cloud.data.past_counts import PastCounts
from pocketrank.cloud.time_zones import DAY_MS, HOUR_MS, local_ms
from pocketrank.device.contract import EFFECTIVE_VIEW_MS, FloatFeature

__all__ = ["LogFacts", "SampleConfig", "Samples", "columns_of", "history_values", "window_samples"]

Int = NDArray[np.int64]
Float = NDArray[np.float32]

_LISTS = 256
"""Lists whose statistics are computed at a time."""

_COLUMNS = (
    "user_id", "item_id", "impression_ms", "watch_ms", "click", "effective_view", "session_id", "page_id", "position", "scene",
)  # fmt: skip
"""Columns of the impressions that every log's samples are made of."""


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
class LogFacts(Entities):
    """What all windows of a log have in common."""

    config: SampleConfig
    feedback_floats: tuple[FloatFeature, ...]
    history_feedback: tuple[str, ...]
    scenes: int
    """Number of scene codes in the whole log: 0 is unknown, then the scenes from 0."""
    has_history: bool
    """Whether the log has events from before it."""
    first_day: int
    """Days since the epoch of day 0."""
    day_start: Int  # [days] each day, counted in days of the calendar from the first
    learn_until: int
    """First test day, or `days` if there is none."""
    statistics: Statistics
    border: int
    """A day since the epoch between two blocks of `list_days`: the first test day, or the first day."""

    @property
    def days(self) -> int:
        """Number of days of the whole log."""
        return len(self.day_start)

    def days_of(self, calendar: Int) -> Int:
        """Return the days of the log of days since the epoch."""
        return np.searchsorted(self.day_start, calendar - self.first_day, "right") - 1

    def blocks_of(self, calendar: Int) -> Int:
        """Return the blocks of `list_days` of days since the epoch. No pseudo-list extends from one into another."""
        return (calendar - self.border) // self.config.list_days


@dataclass(frozen=True)
class Samples(LogFacts):
    """A window of a log as arrays, of E events, L lists of at most N candidates, R rows, and K tasks."""

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


def columns_of(facts: LogFacts, names: Sequence[str]) -> list[str]:
    """Return those of the `names` of a log's columns that samples are made of."""
    feedback = (feature.name for feature in facts.feedback_floats)
    scores = (f"pxtr_{task}" for task in facts.config.tasks)
    wanted = {*_COLUMNS, *facts.config.tasks, *feedback, *facts.history_feedback, *scores}
    return [name for name in names if name in wanted]


def history_values(items: Entities, names: Sequence[str], impressions: pa.Table) -> Float:
    """Return the feedback on past events [R, F] with these `names` of impressions."""
    watch_s = column(impressions, "watch_ms", np.float32) / 1000
    duration_s = items.item_duration_s[index_of(items.item_ids, column(impressions, "item_id", np.int64))]
    # Where a log has no label of effective views, the watch decides, as it does for the events of serving.
    effective = column(impressions, "effective_view", np.float32)
    by_watch = watch_s >= np.minimum(np.where(duration_s > 0, duration_s, np.inf), EFFECTIVE_VIEW_MS / 1000)
    known = {
        "watch_log": np.log1p(watch_s),
        "engaged": np.fmax(column(impressions, "click", np.float32), np.where(np.isnan(effective), by_watch, effective)),
        "logged": np.ones_like(watch_s),
    }
    values = [known[name] if name in known else column(impressions, name, np.float32) for name in names]
    history: Float = np.nan_to_num(np.stack(values, 1)).astype(np.float32)
    return history


def window_samples(
    facts: LogFacts, table: pa.Table, history: pa.Table, latest: LatestEvents, log: Log, counts: PastCounts | None = None
) -> Samples:
    """Return the samples of the rows of `table`, of which each user has all of some days, with the columns `columns_of`.

    `history` has the users' events from before the log, if the rows are the first, and `latest` those of earlier windows; the
    candidates of pages are in `log`. `counts` are those of all users, if the statistics need them. Raises `DataError`.
    """
    return _Window(facts, table, history, latest, counts).samples(log)


class _Window:
    """The arrays of a window, step by step."""

    def __init__(
        self, facts: LogFacts, table: pa.Table, history: pa.Table, latest: LatestEvents, counts: PastCounts | None
    ) -> None:
        self.facts, self.table = facts, table
        user_ids, item_ids = facts.user_ids, facts.item_ids
        before_user, before_item, self.history_long, self.history_like = _history(history)
        user = index_of(user_ids, column(table, "user_id", np.int64))
        self.past = latest.take(np.unique(user))
        # Events before the order: those of earlier windows, the history from before the log, this window's.
        self.carried, n_history = len(self.past.user), len(before_user)
        n_old = self.carried + n_history
        ms, nothing = column(table, "impression_ms", np.int64), np.zeros(n_history, np.int64)
        position = np.concatenate([self.past.position, nothing - 1, column(table, "position", np.int64)])
        user = np.concatenate([self.past.user, index_of(user_ids, before_user), user])
        item = np.concatenate(
            [self.past.item, index_of(item_ids, before_item), index_of(item_ids, column(table, "item_id", np.int64))]
        )
        event_ms = np.concatenate([self.past.ms, nothing, ms])
        # Sorted by user, time and, within a millisecond, by position, as on the device and in serving.
        self.order = np.lexsort((np.arange(len(user)), position, event_ms, user))
        self.source = self.order - n_old  # row of the window, negative for others
        self.logged = self.source >= 0
        self.fresh = self.order >= self.carried
        self.user, self.item, self.ms, self.position = (x[self.order] for x in (user, item, event_ms, position))
        self.counted, self.counts = latest.count, counts

    def of_events(self, values: NDArray[Scalar], fill: Any, past: NDArray[Any] | None = None) -> NDArray[Scalar]:
        """Return a column [E, ...] from that of the window's rows and, if given, of the past events."""
        out = np.full((len(self.order), *values.shape[1:]), fill, values.dtype)
        out[self.logged] = values[self.source[self.logged]]
        if past is not None:
            out[~self.fresh] = past[self.order[~self.fresh]]
        return out

    def samples(self, log: Log) -> Samples:
        facts, config, table = self.facts, self.facts.config, self.table
        past, logged, user = self.past, self.logged, self.user
        n_users = len(facts.user_ids)
        clock_ms = local_ms(column(table, "impression_ms", np.int64), config.time_zone)
        calendar = clock_ms // DAY_MS
        event_day = self.of_events(facts.days_of(calendar), -1, past.day)
        labels = self._labels()
        feedback = np.stack([_feature(column(table, f.name, np.float32), f) for f in facts.feedback_floats], 1)
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
            block=np.where(logged, self.of_events(facts.blocks_of(calendar), 0), Lists.BEFORE),
            page=page,
        )
        if (page >= 0).any():
            lists.fill_pages(log, facts.item_ids, self.item, page)
        lists.fill(
            labels,
            self.of_events(clock_ms // HOUR_MS % 24 + 1, 0).astype(np.int8),
            self.of_events(column(table, "scene", np.int64) + 1, 0).astype(np.int32),
        )

        # Rows: the events of a device begin with its session, or else with the log.
        row_event = np.flatnonzero(logged)
        first_logged = user_start[user] + np.bincount(user[event_day < 0], minlength=n_users)[user]
        history = self._history()
        statistics = self._statistics(lists, user_start, history)
        event_statistics = self.of_events(np.zeros((len(table), statistics.shape[2]), np.float32), 0.0, past.statistics)
        event_statistics[row_event] = statistics[lists.of_event[row_event], lists.slot[row_event]]
        # Session ids may be unique for each user only.
        session_first = np.maximum(run_start(np.where(has_session, session, -1 - user)), user_start[user])
        place_in_session = np.where(has_session, np.arange(len(user)) - session_first, lists.slot)
        events_from = np.where(has_session, session_first, first_logged)[row_event]
        return Samples(
            **{field.name: getattr(facts, field.name) for field in fields(LogFacts)},
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
        )

    def _statistics(self, lists: Lists, user_start: Int, history: Float) -> Float:
        """Return the statistics [L, N, S] of lists as of their beginning; those from before the log have none."""
        statistics, config = self.facts.statistics, self.facts.config.features
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
        values = np.stack([column(self.table, task, np.float32) for task in self.facts.config.tasks], 1)
        labels = self.of_events(values, np.nan, self.past.labels)
        known = {"long_view": self.history_long, "like": self.history_like}
        old = self.fresh & ~self.logged
        for k, task in enumerate(self.facts.config.tasks):
            if task in known:
                labels[old, k] = known[task][self.order[old] - self.carried]
        return labels

    def _history(self) -> Float:
        """Return the `history_feedback` of events."""
        facts, names = self.facts, self.facts.history_feedback
        history = self.of_events(history_values(facts, names, self.table), 0.0, self.past.history)
        old = self.fresh & ~self.logged
        for name, marks in (("long_view", self.history_long), ("like", self.history_like)):
            history[old, names.index(name)] = marks[self.order[old] - self.carried]
        return history

    def _pxtr(self) -> Float:
        """Return the log's own scores, NaN where it has none."""
        names, rows = [f"pxtr_{task}" for task in self.facts.config.tasks], len(self.table)
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
