"""Training samples from an impression log: events, lists and rows, as flat arrays.

They are three views of one log:

- **events**: all impressions, sorted by user and time, with the history from before the log first. A window of a user's past is
  a slice of these arrays.
- **lists**: the candidates that a ranker scored for one request, with only the events before the request as history. If the log
  has pages, a list is a page, whether it was shown or not. Otherwise (KuaiRand) a list is a *pseudo-list*: consecutive rows of
  a user within `list_days`, at most `list_max` of them.
- **rows**: one per logged impression: its list, its slot in the list, and the slice of events that the device had seen by then.

Item and user indices are positions in `item_ids` and `user_ids`; index 0 is unknown or padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pocketrank.cloud.data.feedback import FEEDBACK_FLOATS
from pocketrank.cloud.data.schema import DataError, ImpressionLog
from pocketrank.cloud.time_zones import DAY_MS, HOUR_MS, local_ms
from pocketrank.device.contract import EFFECTIVE_VIEW_MS, FloatFeature

__all__ = ["SampleConfig", "Samples", "build_samples"]

Int = NDArray[np.int64]
Float = NDArray[np.float32]
Scalar = TypeVar("Scalar", bound=np.generic)


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


@dataclass(frozen=True)
class Samples:
    """A log as arrays, of E events, L lists of at most N candidates, R rows, K tasks, U users and I items."""

    config: SampleConfig
    feedback_floats: tuple[FloatFeature, ...]
    item_ids: Int  # [I + 1]
    user_ids: Int  # [U + 1]
    item_author: Int  # [I + 1] codes
    item_author_id: Int  # [I + 1] as the log has them, 0 unknown
    item_category: Int  # [I + 1] codes
    item_duration_s: Float  # [I + 1]
    item_upload_day: Float  # [I + 1], NaN unknown
    item_upload_ms: Int  # [I + 1], the smallest int64 unknown
    item_content: Float  # [I + 1, V], V = 0 where the log has no content vectors
    user_categories: Int  # [U + 1, A]
    user_floats: Float  # [U + 1, B]
    user_start: Int  # [U + 2] first event of each user
    event_item: Int  # [E]
    event_user: Int  # [E]
    event_ms: Int  # [E], 0 before the log
    event_position: Int  # [E] in the session, or in the user's order
    event_feedback: Float  # [E, len(feedback_floats)], scaled, clipped, defaults filled in
    event_history: Float  # [E, len(HISTORY_FEEDBACK)]
    event_labels: Float  # [E, K], NaN unknown
    event_day: Int  # [E] day of the log, -1 before it
    list_user: Int  # [L]
    list_event: Int  # [L] the history of a list ends before this event
    list_day: Int  # [L], -1 for lists cut from before the log
    list_item: Int  # [L, N], 0 = padding
    list_hour: Int  # [L, N] 1..24, 0 unknown; of a page's request, or of each row of a pseudo-list
    list_scene: Int  # [L, N]
    list_labels: Float  # [L, N, K], NaN where not shown or unknown
    row_event: Int  # [R]
    row_list: Int  # [R]
    row_slot: Int  # [R]
    row_events_from: Int  # [R] the device's events are [row_events_from, row_event)
    row_position: Int  # [R] the `position` in the device's context
    list_shown: Int  # [L, N] event at which a slot was shown; E where it never was; -1 where the list is no real page
    first_day: int  # days since the epoch of day 0

    @property
    def days(self) -> int:
        """Number of days from the first logged impression to the last."""
        return int(self.event_day.max()) + 1

    @property
    def learn_until(self) -> int:
        """First test day, or `days` if there is none."""
        test_from = self.config.test_from
        return (test_from - date(1970, 1, 1)).days - self.first_day if test_from else self.days


def build_samples(log: ImpressionLog, config: SampleConfig) -> Samples:
    """Return the samples of `log`. Raises `DataError` for a task without a label in the log."""
    table = log.impressions
    for task in config.tasks:
        if task not in log.labels or table.column(task).null_count == len(table):
            raise DataError(log.name, f"expected labels of task `{task}`, got none", column=task)
    item_ids, user_ids = _vocabulary(log.items, "item_id"), _vocabulary(log.users, "user_id")
    feedback_floats = tuple(f for f in FEEDBACK_FLOATS if table.column(f.name).null_count < len(table))

    ms = _column(table, "impression_ms", np.int64)
    clock_ms = local_ms(ms, config.time_zone)
    day = clock_ms // DAY_MS
    first_day = int(day.min())
    item_floats = _items(log.items, first_day, config.time_zone)
    history_user, history_item, history_long, history_like = _history(log)
    n_history = len(history_user)

    user = _index(user_ids, np.concatenate([history_user, _column(table, "user_id", np.int64)]))
    item = _index(item_ids, np.concatenate([history_item, _column(table, "item_id", np.int64)]))
    event_ms = np.concatenate([np.zeros(n_history, np.int64), ms])
    position = np.concatenate([np.full(n_history, -1), _column(table, "position", np.int64)])
    # Events, sorted by user, time and, within a millisecond, by position, as on the device and in serving.
    order = np.lexsort((np.arange(len(user)), position, event_ms, user))
    source = order - n_history  # row of the log, negative for history
    logged = source >= 0
    user, item, event_ms, position = user[order], item[order], event_ms[order], position[order]

    def from_log(values: NDArray[Scalar], fill: Any) -> NDArray[Scalar]:
        out = np.full((len(order), *values.shape[1:]), fill, values.dtype)
        out[logged] = values[source[logged]]
        return out

    # Labels and feedback; of the history only two labels are known.
    labels = from_log(np.stack([_column(table, t, np.float32) for t in config.tasks], 1), np.nan)
    known = {"long_view": history_long, "like": history_like}
    for k, task in enumerate(config.tasks):
        if task in known:
            labels[~logged, k] = known[task][order[~logged]]
    watch_s = _column(table, "watch_ms", np.float32) / 1000
    duration_s = item_floats["item_duration_s"][_index(item_ids, _column(table, "item_id", np.int64))]
    # Where a log has no label of effective views, the watch decides, as it does for the events of serving.
    effective = _column(table, "effective_view", np.float32)
    by_watch = watch_s >= np.minimum(np.where(duration_s > 0, duration_s, np.inf), EFFECTIVE_VIEW_MS / 1000)
    engaged = np.fmax(_column(table, "click", np.float32), np.where(np.isnan(effective), by_watch, effective))
    cloud_side = np.nan_to_num(
        np.stack(
            [
                _column(table, "long_view", np.float32),
                _column(table, "like", np.float32),
                np.log1p(watch_s),
                engaged,
                np.ones_like(watch_s),
            ],
            1,
        )
    )
    event_history = from_log(cloud_side, 0.0)
    event_history[~logged, 0] = history_long[order[~logged]]
    event_history[~logged, 1] = history_like[order[~logged]]
    feedback = np.stack([_feature(_column(table, f.name, np.float32), f) for f in feedback_floats], 1)

    # Lists.
    user_start = np.searchsorted(user, np.arange(len(user_ids) + 1)).astype(np.int64)
    event_day = from_log(day - first_day, -1)
    session = from_log(_column(table, "session_id", np.int64), -1)
    page = from_log(_column(table, "page_id", np.int64), -1)
    place = np.arange(len(user)) - user_start[user]
    has_session = session >= 0
    cut = (config.test_from - date(1970, 1, 1)).days - first_day if config.test_from else 0
    lists = _Lists(log, config, item_ids, user, item, logged, event_day - cut, page)
    hour = from_log(clock_ms // HOUR_MS % 24 + 1, 0)
    lists.fill(labels, hour, from_log(_column(table, "scene", np.int64) + 1, 0))

    # Rows: the events of a device begin with its session, or else with the log.
    row_event = np.flatnonzero(logged)
    first_logged = user_start[user] + np.bincount(user[~logged], minlength=len(user_ids))[user]
    # Session ids may be unique for each user only.
    session_first = np.maximum(_run_start(np.where(has_session, session, -1 - user)), user_start[user])
    place_in_session = np.where(has_session, np.arange(len(user)) - session_first, lists.slot)
    events_from = np.where(has_session, session_first, first_logged)[row_event]
    return Samples(
        config=config,
        feedback_floats=feedback_floats,
        item_ids=item_ids,
        user_ids=user_ids,
        **item_floats,
        user_categories=_lists(log.users, "categories", np.int64),
        user_floats=_lists(log.users, "floats", np.float32),
        user_start=np.append(user_start, len(user)),
        event_item=item,
        event_user=user,
        event_ms=event_ms,
        event_position=np.where(position >= 0, position, place),
        event_feedback=from_log(feedback, 0.0),
        event_history=event_history,
        event_labels=labels,
        event_day=event_day,
        list_user=lists.user,
        list_event=lists.event,
        list_day=event_day[lists.event],
        list_item=lists.item,
        list_hour=lists.hour,
        list_scene=lists.scene,
        list_labels=lists.labels,
        row_event=row_event,
        row_list=lists.of_event[row_event],
        row_slot=lists.slot[row_event],
        row_events_from=np.maximum(events_from, row_event - config.events_max),
        row_position=np.where(position >= 0, position, place_in_session)[row_event],
        list_shown=lists.shown,
        first_day=first_day,
    )


class _Lists:
    """Lists of the log, which are pages or pseudo-lists, and of the history before it."""

    def __init__(
        self,
        log: ImpressionLog,
        config: SampleConfig,
        item_ids: Int,
        user: Int,
        item: Int,
        logged: NDArray[np.bool_],
        day: Int,
        page: Int,
    ) -> None:
        n = len(user)
        # A run of events that may be in one list: of a user and of `list_days`, with the history apart.
        key = np.where(logged, day // config.list_days, -2048)
        run = _run_start(user * 4096 + key + 2048)
        place = np.arange(n) - run
        size = np.where(logged, config.list_max, config.history_list)
        start = np.where(page >= 0, _run_start(page), run + place // size * size)
        begins = start == np.arange(n)
        self.of_event = np.cumsum(begins) - 1
        self.slot = np.arange(n) - start
        self.event = np.flatnonzero(begins)
        self.user = user[self.event]
        self.item = np.zeros((len(self.event), config.list_max), np.int64)
        paged = page >= 0
        self.paged = paged[self.event]
        free = ~paged
        self.item[self.of_event[free], self.slot[free]] = item[free]
        if paged.any():
            self._pages(log, item_ids, item, page, paged)

    def _pages(self, log: ImpressionLog, item_ids: Int, item: Int, page: Int, paged: NDArray[np.bool_]) -> None:
        column = log.pages.column("item_id").combine_chunks()
        offsets = column.offsets.to_numpy().astype(np.int64)
        values = _index(item_ids, column.values.to_numpy())
        ids = _column(log.pages, "page_id", np.int64)
        by_id = np.argsort(ids, kind="stable")
        row = by_id[np.searchsorted(ids[by_id], page[self.event]).clip(0, len(ids) - 1)]
        of_page = np.flatnonzero(page[self.event] >= 0)
        width = self.item.shape[1]
        for target, source in zip(of_page, row[of_page], strict=True):
            offered = values[offsets[source] : offsets[source + 1]][:width]
            self.item[target, : len(offered)] = offered
        found = self.item[self.of_event[paged]] == item[paged][:, None]
        if not found.any(1).all():
            raise DataError(log.name, "expected each shown item among its page's candidates", column="page_id")
        self.slot[paged] = found.argmax(1)

    def fill(self, labels: Float, hour: Int, scene: Int) -> None:
        """Set labels, hour, scene and event of the slots of lists, from those of the events.

        All candidates of a page have the hour and the scene of its request, at which they were ranked: the hour of an
        impression would reveal which candidates were shown late.
        """
        at = self.of_event, self.slot
        self.shown = np.where(self.paged[:, None] & (self.item > 0), len(hour), -1)
        self.shown[at] = np.where(self.paged[self.of_event], np.arange(len(hour)), -1)
        self.labels = np.full((*self.item.shape, labels.shape[1]), np.nan, np.float32)
        self.labels[at] = labels
        self.hour = np.repeat(hour[self.event][:, None], self.item.shape[1], 1)
        self.scene = np.repeat(scene[self.event][:, None], self.item.shape[1], 1)
        free = ~self.paged[self.of_event]
        place = self.of_event[free], self.slot[free]
        self.hour[place], self.scene[place] = hour[free], scene[free]


def _column(table: pa.Table, name: str, dtype: type[Scalar]) -> NDArray[Scalar]:
    """Return a column as numpy, with NaN for nulls in floats and -1 in integers."""
    column = table.column(name)
    if np.issubdtype(dtype, np.floating):
        return np.asarray(column.cast(pa.float32()).to_numpy(), dtype)  # nulls become NaN
    return np.asarray(column.cast(pa.int64()).fill_null(-1).to_numpy(), dtype)


def _lists(table: pa.Table, name: str, dtype: type[Scalar]) -> NDArray[Scalar]:
    """Return a list column of one width as [rows + 1, width]; row 0 is zeros."""
    column = table.column(name).combine_chunks()
    values = column.drop_null().flatten().to_numpy(zero_copy_only=False)
    width = len(values) // max(1, len(column) - column.null_count)
    out = np.zeros((len(column) + 1, width), dtype)
    if width:
        out[1:][np.asarray(column.is_valid())] = values.reshape(-1, width)
    return out


def _items(table: pa.Table, first_day: int, time_zone: str) -> dict[str, Any]:
    upload = _column(table, "upload_ms", np.int64)
    author, unknown = _column(table, "author_id", np.int64), np.iinfo(np.int64).min
    return {
        "item_author": _codes(author),
        "item_author_id": np.append(0, np.maximum(author, 0)),
        "item_upload_ms": np.append(unknown, np.where(upload >= 0, upload, unknown)),
        "item_category": np.append(0, np.maximum(_column(table, "category", np.int64), 0)),
        "item_duration_s": np.append(0, _column(table, "duration_ms", np.int64) / 1000).astype(np.float32),
        "item_upload_day": np.append(
            np.nan, np.where(upload >= 0, local_ms(upload, time_zone) / DAY_MS - first_day, np.nan)
        ).astype(np.float32),
        "item_content": _lists(table, "vector", np.float32),
    }


def _history(log: ImpressionLog) -> tuple[Int, Int, Float, Float]:
    lists = {n: log.history.column(n).combine_chunks() for n in ("item_id", "long_view", "like")}
    lengths = np.diff(lists["item_id"].offsets.to_numpy())
    user = np.repeat(_column(log.history, "user_id", np.int64), lengths)
    values = {n: c.flatten().to_numpy(zero_copy_only=False) for n, c in lists.items()}
    return user, values["item_id"], values["long_view"].astype(np.float32), values["like"].astype(np.float32)


def _vocabulary(table: pa.Table, name: str) -> Int:
    ids = np.unique(_column(table, name, np.int64))
    if len(ids) != len(table) or not np.array_equal(ids, _column(table, name, np.int64)):
        raise DataError(name.removesuffix("_id") + "s", "expected unique ids in ascending order", column=name)
    return np.concatenate([[np.iinfo(np.int64).min], ids])


def _index(ids: Int, values: Int) -> Int:
    at = np.searchsorted(ids, values).clip(0, len(ids) - 1)
    return np.where(ids[at] == values, at, 0)


def _codes(values: Int) -> Int:
    unique, codes = np.unique(values, return_inverse=True)
    return np.append(0, np.where(values < 0, 0, codes + (1 if unique[0] >= 0 else 0)))


def _run_start(key: Int) -> Int:
    """Return for each element the index of the first one in its run of equal keys."""
    starts = np.concatenate([[True], key[1:] != key[:-1]])
    return np.maximum.accumulate(np.where(starts, np.arange(len(key)), 0))


def _feature(values: Float, feature: FloatFeature) -> Float:
    scaled = np.where(np.isnan(values), feature.default, values * feature.scale)
    return np.clip(scaled, feature.min, feature.max).astype(np.float32)
