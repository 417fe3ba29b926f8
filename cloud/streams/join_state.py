"""State machine of the join: from served pages and feedback events, in whatever order they come, to samples.

`pocketrank.cloud.streams.join` has the specification. `JoinState` does nothing but compute: what comes in are records, what
comes out are samples, and its clock is the newest `appended_ms` that it was given. It keeps what it knows of users and pages in
an SQLite database, in memory or in a file, with the most recently used part decoded in memory.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heappop, heappush
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import msgspec
import numpy as np

from pocketrank.cloud.streams.event_log import Record
from pocketrank.cloud.streams.feedback_log import LoggedEvent
from pocketrank.cloud.streams.messages import Sample, ServedPage
from pocketrank.cloud.streams.sqlite_file import open_state
from pocketrank.device.codec import from_msgpack
from pocketrank.device.contract import EFFECTIVE_VIEW_MS, LONG_VIEW_MS, ContractError, Ended, FeedbackEvent, MismatchError

__all__ = [
    "ACTION_LABELS",
    "HAS_NEXT",
    "Durations",
    "JoinConfig",
    "JoinCounts",
    "JoinState",
    "actions_of",
    "is_negative",
    "joined_labels",
    "labels_of",
]

HAS_NEXT = "has_next"

ACTION_LABELS = ("click", "like", "follow", "comment", "share", "profile_enter", "dislike")
"""Labels that a device reports as such."""
_LEFT = (Ended.EXIT, Ended.BACKGROUND)
_EXPIRE_ROWS = 1000
_BUSY_S = 0.5
"""How long another process may still have the file, in seconds."""
_SEEN_MAX = 64
"""Ids of events that are remembered of one impression."""
_NEVER = np.iinfo(np.int64).max

_logger = logging.getLogger(__name__)

Durations = Callable[[int], int | None]
"""Duration of an item in milliseconds; None or 0 where it is not known."""
PageReader = Callable[[int, int], bytes | None]
"""Record of a page by its partition and offset; None where the log does not have it any more."""
Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class JoinConfig:
    """Waiting times, labels and sizes.

    Raises `MismatchError` unless 0 < `wait_ms` < `session_ms` < `late_ms`, and for `wait_for_next` with `negatives` or without
    `has_next`.
    """

    has_next: bool = True
    """Whether samples have the label `has_next`. A run without this task needs no corrections for it."""
    wait_for_next: bool = False
    """Whether a sample is sent when that label is known. Otherwise a correction adds it."""
    actions: tuple[str, ...] = ()
    """The app's own actions that are labels, true or false in each sample. Others are labels only where they were done."""
    negatives: float = 0.0
    """Share of the candidates that were never shown that become samples, 0 to 1. Hashes of page and item choose them."""
    exposures: int = 3
    """A candidate was passed over when so many candidates behind it were shown."""
    session_ms: int = 30 * 60_000
    """Time without a page or an event after which a session is over."""
    wait_ms: int = 10 * 60_000
    """How long an event waits for its page."""
    late_ms: int = 25 * 3_600_000
    """How long a page, and a session after its last page or event, wait for events."""
    waiting_max: int = 1000
    """Events of one user that wait for their page. Beyond it the oldest is dropped, and counted as without a page."""
    sessions_max: int = 200
    """Sessions of one user that are kept. Beyond it the one is dropped whose last page or event is oldest."""
    in_memory: int = 20_000
    """Users, and pages' states, that are kept decoded in memory between two steps, some 2 KB each."""
    pages_bytes: int = 128 << 20
    """Size of the pages that are kept in memory as served. The others are read from the log when an event of theirs comes."""

    def __post_init__(self) -> None:
        if not 0 < self.wait_ms < self.session_ms < self.late_ms:
            got = f"{self.wait_ms}, {self.session_ms}, {self.late_ms}"
            raise MismatchError("JoinConfig", "0 < wait_ms < session_ms < late_ms", got)
        if not 0 <= self.negatives <= 1:
            raise MismatchError("JoinConfig.negatives", "a share from 0 to 1", str(self.negatives))
        if self.wait_for_next and (self.negatives or not self.has_next):
            # What was sent as not shown would wait to be corrected.
            raise MismatchError(
                "JoinConfig.wait_for_next", "`has_next`, and no `negatives`", f"{self.has_next}, {self.negatives}"
            )


@dataclass
class JoinCounts:
    """What a process has joined so far."""

    pages: int = 0
    events: int = 0
    samples: int = 0
    corrections: int = 0
    """Samples of a revision above 0; they are among `samples`."""
    negatives: int = 0
    """Samples of candidates that were not shown; they are among `samples`."""
    duplicates: int = 0
    """Pages and events whose id was known."""
    late: int = 0
    """Events that came after their session was over by time."""
    no_page: int = 0
    """Events that name no page, such as those of the app's own items."""
    without_page: int = 0
    """Events whose page did not come within `wait_ms`, was older than `late_ms`, or is of another user."""
    other_item: int = 0
    """Events of an item that their page does not have."""
    lost_pages: int = 0
    """Events of a page that the log deleted before `late_ms`."""
    expired: int = 0
    """Pages that are older than `late_ms`."""
    unreadable: int = 0
    forgotten: int = 0
    open_pages: int = 0
    """Pages that events may still come for."""
    pages_in_memory: int = 0
    spilled: int = 0
    """Open pages that are on the disk only."""
    lag_s: float = 0.0
    """Time in seconds from when the oldest record of the last step was appended until its samples were committed."""


class _Impression(msgspec.Struct, array_like=True):
    """What is known of a candidate that was shown. All of it only grows, so that the order of events is of no account."""

    place: int
    event_ms: int
    watch_ms: int
    left: bool = False
    has_next: bool | None = None
    seen: list[int] = []
    """Hashes of its events' ids."""
    keys: dict[str, tuple[int, int]] = {}
    """By session, the smallest position and date."""
    actions: list[str] = []
    revision: int = -1
    """Of the last sample; -1 = none."""
    labels: dict[str, bool] = {}
    """Of the last sample."""
    sent_watch_ms: int = 0


class _Page(msgspec.Struct, array_like=True):
    """What is kept of a page beside its record."""

    partition: int
    offset: int
    arrived_ms: int
    over: int = 0
    """Places before this one that were not shown were passed over."""
    shown: dict[int, _Impression] = {}
    """By item."""


class _Session(msgspec.Struct, array_like=True):
    """What is kept of a session."""

    last_ms: int
    """Time of its last page or event."""
    ended: bool = False
    """Whether it was over by time when that happened last."""
    top: list[tuple[int, int, str, int]] = []
    """The two impressions with the largest position and date: position, date, page and item."""
    pending: list[str] = []
    """Pages with an impression that has none behind it so far."""
    newest: tuple[int, str] = (-1, "")
    """Date and id of the newest page."""
    open: list[str] = []
    """Pages of which not all candidates are known to be over."""


class _User(msgspec.Struct, array_like=True):
    """What is kept of a user."""

    sessions: dict[str, _Session] = {}
    waiting: list[tuple[int, bytes]] = []
    """Events without their page: when each came, and the record."""
    due_ms: int = _NEVER


class _Served(NamedTuple):
    page: ServedPage
    items: list[int]
    places: dict[int, int]
    size: int


@dataclass
class _Cache(Generic[Key, Value]):
    """Most recently used values, and those that changed since they were last written."""

    values: OrderedDict[Key, Value] = field(default_factory=OrderedDict)
    dirty: dict[Key, None] = field(default_factory=dict)

    def shrink(self, size: int) -> None:
        """Drop the values that were not used for longest. None of them may be dirty."""
        while len(self.values) > size:
            self.values.popitem(last=False)


class JoinState:
    """The join's state, in the file at `path` or in memory. Use it from one thread.

    Feed it records, take the samples with `take`, and call `write` within a transaction of `db` to keep the state. Raises
    sqlite3.Error and OSError when the state cannot be opened or written.
    """

    def __init__(self, config: JoinConfig, durations: Durations, reader: PageReader, path: Path | None = None) -> None:
        self.config, self.counts, self.now_ms = config, JoinCounts(), 0
        self._durations, self._reader = durations, reader
        self._users: _Cache[int, _User] = _Cache()
        self._pages: _Cache[tuple[int, str], _Page] = _Cache()
        self._served: OrderedDict[tuple[int, str], _Served] = OrderedDict()
        self._served_bytes = 0
        self._due: list[tuple[int, int]] = []
        """Heap of the users whose timers end in this step, or were set in it, each with the time."""
        self._loaded_ms = -1
        self._out: list[Sample] = []
        self.db = open_state(path, _BUSY_S)
        self.db.executescript(_TABLES)
        self._open_pages: int = self.db.execute("SELECT count(*) FROM page").fetchone()[0]

    # ---------------------------------------------------------------------------------------------------------- records

    def page(self, record: Record) -> None:
        """Take the next record of the topic `pages`."""
        self.advance(record.appended_ms)
        if not record.value:
            self._forget(record.key)
            return
        served = self._decoded("pages", record, ServedPage)
        if served is None:
            return
        self.counts.pages += 1
        user, key = self._user(record.key), (record.key, served.page_id)
        session = self._session(user, served.session_id)
        if self._page(key) is not None:
            self.counts.duplicates += 1
        else:
            page = _Page(record.partition, record.offset, self.now_ms)
            self._pages.values[key] = page
            self._pages.dirty[key] = None
            self._open_pages += 1
            self._remember(key, served, len(record.value))
            if user.waiting:
                self._attach_waiting(user, key, page)
            if self.config.negatives:
                self._renew(session, key, page, served)
        self._schedule(record.key, user)

    def event(self, record: Record) -> None:
        """Take the next record of the topic `feedback`."""
        self.advance(record.appended_ms)
        if not record.value:
            self._forget(record.key)
            return
        event = self._decoded("feedback", record, LoggedEvent)
        if event is None:
            return
        self.counts.events += 1
        user = self._user(record.key)
        known = user.sessions.get(event.session_id)
        self.counts.late += known is not None and known.ended
        session = self._session(user, event.session_id)
        if self.config.has_next and _rise(session, event):
            self._review(record.key, event.session_id, session)
        if event.page_id is None:
            self.counts.no_page += 1
        elif (page := self._page((record.key, event.page_id))) is not None:
            self._attach(user, (record.key, event.page_id), page, event)
        else:
            user.waiting.append((self.now_ms, record.value))
            if len(user.waiting) > self.config.waiting_max:
                del user.waiting[0]
                self.counts.without_page += 1
        self._schedule(record.key, user)

    def was_sent(self, user_id: int, page_id: str, item_id: int, revision: int, labels: dict[str, bool], watch_ms: int) -> None:
        """Take notice of the last revision that was sent of a candidate by a join whose state was lost."""
        key = user_id, page_id
        page = self._page(key)
        shown = None if page is None else page.shown.get(item_id)
        if page is None or shown is None or shown.revision > revision:
            return
        shown.revision, shown.labels, shown.sent_watch_ms = revision, labels, watch_ms
        self._pages.dirty[key] = None
        if (served := self._as_served(key, page)) is not None:
            self._settle(served, item_id, shown)

    def load(self, until_ms: int) -> None:
        """Make ready the timers that end up to `until_ms`."""
        if until_ms > self._loaded_ms:
            rows = self.db.execute(
                "SELECT due_ms, id FROM user WHERE due_ms > ? AND due_ms <= ?", (self._loaded_ms, until_ms)
            ).fetchall()
            for row in rows:
                heappush(self._due, row)
            self._loaded_ms = until_ms

    def advance(self, now_ms: int) -> None:
        """Set the clock, which never goes back, and end what is over by then."""
        if now_ms <= self.now_ms:
            return
        self.load(now_ms)
        while self._due and self._due[0][0] <= now_ms:
            due_ms, user_id = heappop(self._due)
            user = self._user(user_id)
            if user.due_ms == due_ms:  # else it was set anew since
                self.now_ms = max(self.now_ms, due_ms)
                self._end(user_id, user)
                self._schedule(user_id, user)
        self.now_ms = now_ms

    def next_due_ms(self) -> int:
        """Return when the next timer ends, as of the last `write`."""
        return int(self.db.execute("SELECT coalesce(min(due_ms), ?) FROM user", (_NEVER,)).fetchone()[0])

    def take(self) -> list[Sample]:
        """Return the samples that are due, in their order, without number and size of their batch; each is returned once."""
        samples, self._out = self._out, []
        return samples

    # ---------------------------------------------------------------------------------------------------- consumption

    def _attach_waiting(self, user: _User, key: tuple[int, str], page: _Page) -> None:
        rest = []
        for waiting in user.waiting:
            event = from_msgpack(waiting[1], LoggedEvent)
            if event.page_id == key[1]:
                self._attach(user, key, page, event)
            else:
                rest.append(waiting)
        user.waiting = rest

    def _attach(self, user: _User, key: tuple[int, str], page: _Page, event: LoggedEvent) -> None:
        """Take an event into account that is of this page."""
        served = self._as_served(key, page)
        if served is None:
            self.counts.lost_pages += 1
            return
        place = served.places.get(event.item_id)
        if place is None:
            self.counts.other_item += 1
            return
        date_ms = event.impression_ms + event.correction_ms
        shown, event_hash = page.shown.get(event.item_id), _hash(event.event_id)
        if shown is None:
            shown = page.shown[event.item_id] = _Impression(place, date_ms, event.watch_ms)
            if place < page.over and self._is_negative(key[1], event.item_id):
                shown.revision = 0  # it was sent as not shown
        elif event_hash in shown.seen:
            self.counts.duplicates += 1
            return
        shown.seen = [*shown.seen[-_SEEN_MAX:], event_hash]
        shown.event_ms, shown.watch_ms = min(shown.event_ms, date_ms), max(shown.watch_ms, event.watch_ms)
        shown.actions = sorted({*shown.actions, *actions_of(event)})
        shown.left |= event.ended in _LEFT
        self._pages.dirty[key] = None
        session = user.sessions.get(event.session_id)
        if self.config.has_next and session is not None:
            own = event.position, date_ms
            shown.keys[event.session_id] = own = min(own, shown.keys.get(event.session_id, own))
            if _is_followed(session, key[1], event.item_id, own):
                shown.has_next = True
            elif shown.has_next is None and shown.left:
                shown.has_next = False
            if shown.has_next is not True and key[1] not in session.pending:
                session.pending.append(key[1])
        self._settle(served, event.item_id, shown)
        if self.config.negatives and len(page.shown) >= self.config.exposures:
            places = sorted(impression.place for impression in page.shown.values())
            self._sweep(key, page, places[-self.config.exposures])

    def _review(self, user_id: int, session_id: str, session: _Session) -> None:
        """Find the impressions that the session has another one behind by now."""
        pending = []
        for page_id in session.pending:
            if (page := self._page((user_id, page_id))) is None:
                continue
            last = False
            for item_id, shown in page.shown.items():
                own = shown.keys.get(session_id)
                if shown.has_next is True or own is None:
                    continue
                if _is_followed(session, page_id, item_id, own):
                    self._know_next((user_id, page_id), page, item_id, shown, True)
                else:
                    last = True
            if last:
                pending.append(page_id)
        session.pending = pending

    def _know_next(self, key: tuple[int, str], page: _Page, item_id: int, shown: _Impression, has_next: bool) -> None:
        shown.has_next = has_next
        self._pages.dirty[key] = None
        served = self._as_served(key, page)
        if served is not None:
            self._settle(served, item_id, shown)

    def _settle(self, served: _Served, item_id: int, shown: _Impression) -> None:
        """Send a sample where none was sent of an impression, or one that says something else."""
        if self.config.wait_for_next and shown.has_next is None:
            return
        labels = labels_of(shown.watch_ms, shown.actions, self._durations(item_id), self.config.actions)
        if shown.has_next is not None:
            labels[HAS_NEXT] = shown.has_next
        if shown.revision >= 0 and labels == shown.labels and shown.watch_ms == shown.sent_watch_ms:
            return
        shown.revision += 1
        self._send(served, item_id, shown.place, shown.event_ms, True, shown.revision, labels, shown.labels, shown.watch_ms)
        shown.labels, shown.sent_watch_ms = labels, shown.watch_ms

    def _send(
        self,
        served: _Served,
        item_id: int,
        place: int,
        event_ms: int,
        shown: bool,
        revision: int,
        labels: dict[str, bool],
        before: dict[str, bool],
        watch_ms: int,
    ) -> None:
        page, n = served.page, len(served.items)
        self.counts.samples += 1
        self.counts.corrections += revision > 0
        self.counts.negatives += not shown
        self._out.append(
            Sample(
                batch=0,
                of=0,
                page_id=page.page_id,
                item_id=item_id,
                place=place,
                event_ms=event_ms,
                shown=shown,
                revision=revision,
                labels=labels,
                before=before,
                watch_ms=watch_ms,
                run=page.run,
                sequence=page.sequence,
                experiment=page.experiment,
                inputs=page.inputs,
                pxtr=_row(page.pxtr, place, n),
                statistics=_row(page.statistics, place, n),
            )
        )

    # ---------------------------------------------------------------------------------------------- candidates not shown

    def _is_negative(self, page_id: str, item_id: int) -> bool:
        return self.config.negatives > 0 and is_negative(page_id, item_id, self.config.negatives)

    def _renew(self, session: _Session, key: tuple[int, str], page: _Page, served: ServedPage) -> None:
        """Let the newest page of a session end the others."""
        this = served.served_ms, served.page_id
        if this < session.newest:
            self._sweep(key, page, _NEVER)
            return
        self._close(key[0], session)
        session.newest, session.open = this, [served.page_id]

    def _close(self, user_id: int, session: _Session) -> None:
        for page_id in session.open:
            if (page := self._page((user_id, page_id))) is not None:
                self._sweep((user_id, page_id), page, _NEVER)
        session.open = []

    def _sweep(self, key: tuple[int, str], page: _Page, until: int) -> None:
        """Send the chosen candidates before a place that were not shown."""
        if until <= page.over or (served := self._as_served(key, page)) is None:
            return
        until = min(until, len(served.items))
        for place in range(page.over, until):
            item_id = served.items[place]
            if item_id not in page.shown and served.places[item_id] == place and self._is_negative(key[1], item_id):
                self._send(served, item_id, place, served.page.served_ms, False, 0, {}, {}, 0)
        page.over = max(page.over, until)
        self._pages.dirty[key] = None

    # -------------------------------------------------------------------------------------------------- sessions and time

    def _session(self, user: _User, session_id: str) -> _Session:
        """Return a session, of which a page or an event came."""
        session = user.sessions.get(session_id)
        if session is None:
            session = user.sessions[session_id] = _Session(self.now_ms)
            if len(user.sessions) > self.config.sessions_max:
                del user.sessions[min(user.sessions, key=lambda one: user.sessions[one].last_ms)]
        session.last_ms, session.ended = self.now_ms, False
        return session

    def _schedule(self, user_id: int, user: _User) -> None:
        """Set when the next of a user's timers ends."""
        config = self.config
        due = user.waiting[0][0] + config.wait_ms if user.waiting else _NEVER
        for session in user.sessions.values():
            due = min(due, session.last_ms + (config.late_ms if session.ended else config.session_ms))
        self._users.dirty[user_id] = None
        if due != user.due_ms:
            user.due_ms = due
            heappush(self._due, (due, user_id))

    def _end(self, user_id: int, user: _User) -> None:
        """End what is over by now of a user."""
        config, now = self.config, self.now_ms
        kept = [waiting for waiting in user.waiting if waiting[0] + config.wait_ms > now]
        self.counts.without_page += len(user.waiting) - len(kept)
        user.waiting = kept
        for session_id, session in list(user.sessions.items()):
            if not session.ended and session.last_ms + config.session_ms <= now:
                session.ended = True
                self._end_session(user_id, session_id, session)
            if session.last_ms + config.late_ms <= now:
                del user.sessions[session_id]

    def _end_session(self, user_id: int, session_id: str, session: _Session) -> None:
        pending = []
        for page_id in session.pending:
            if (page := self._page((user_id, page_id))) is None:
                continue
            pending.append(page_id)  # another impression may come late
            for item_id, shown in page.shown.items():
                if shown.has_next is None and session_id in shown.keys:
                    self._know_next((user_id, page_id), page, item_id, shown, False)
        session.pending = pending
        self._close(user_id, session)

    def _forget(self, user_id: int) -> None:
        """Drop what is known of a user. Samples that are due stay out, too."""
        self.counts.forgotten += 1
        self._users.values[user_id] = _User()
        self._users.dirty[user_id] = None
        for key in [key for key in self._pages.values if key[0] == user_id]:
            del self._pages.values[key]
            self._pages.dirty.pop(key, None)
        for key in [key for key in self._served if key[0] == user_id]:
            self._served_bytes -= self._served.pop(key).size
        self.db.execute("DELETE FROM page WHERE user_id = ?", (user_id,))
        self._open_pages = self.db.execute("SELECT count(*) FROM page").fetchone()[0] + len(self._pages.dirty)
        self._out = [sample for sample in self._out if sample.inputs.user_id != user_id]

    # ------------------------------------------------------------------------------------------------------------- storage

    def _decoded(self, topic: str, record: Record, kind: type[Value]) -> Value | None:
        try:
            return from_msgpack(record.value, kind)  # type: ignore[type-var]
        except ContractError as error:
            self.counts.unreadable += 1
            _logger.error("record %d of the topic %s is skipped: %s", record.offset, topic, error)
            return None

    def _user(self, user_id: int) -> _User:
        users = self._users.values
        user = users.get(user_id)
        if user is None:
            row = self.db.execute("SELECT value FROM user WHERE id = ?", (user_id,)).fetchone()
            user = users[user_id] = msgspec.msgpack.decode(row[0], type=_User) if row else _User()
        users.move_to_end(user_id)
        return user

    def _page(self, key: tuple[int, str]) -> _Page | None:
        """Return a page that events may still come for."""
        pages = self._pages.values
        page = pages.get(key)
        if page is None:
            row = self.db.execute("SELECT value FROM page WHERE user_id = ? AND id = ?", key).fetchone()
            if row is None:
                return None
            page = pages[key] = msgspec.msgpack.decode(row[0], type=_Page)
        pages.move_to_end(key)
        return page if page.arrived_ms + self.config.late_ms > self.now_ms else None

    def _as_served(self, key: tuple[int, str], page: _Page) -> _Served | None:
        served = self._served.get(key)
        if served is not None:
            self._served.move_to_end(key)
            return served
        value = self._reader(page.partition, page.offset)
        if not value:
            return None
        found = from_msgpack(value, ServedPage)
        return self._remember(key, found, len(value)) if found.page_id == key[1] else None

    def _remember(self, key: tuple[int, str], page: ServedPage, size: int) -> _Served:
        items = np.frombuffer(page.item_id, "<i8").tolist()
        places = {item: place for place, item in reversed(list(enumerate(items)))}
        served = self._served[key] = _Served(page, items, places, size + 128 * len(items))
        self._served_bytes += served.size
        while self._served_bytes > self.config.pages_bytes and len(self._served) > 1:
            self._served_bytes -= self._served.popitem(last=False)[1].size
        return served

    def write(self) -> None:
        """Write what changed, and delete pages that are too old. Call it within a transaction."""
        users, pages = self._users, self._pages
        gone = [one for one in users.dirty if not users.values[one].sessions and not users.values[one].waiting]
        kept = [(one, users.values[one].due_ms, msgspec.msgpack.encode(users.values[one])) for one in users.dirty]
        self.db.executemany("INSERT OR REPLACE INTO user VALUES (?, ?, ?)", kept)
        self.db.executemany("DELETE FROM user WHERE id = ?", [(one,) for one in gone])
        for one in gone:
            del users.values[one]
        rows = [(*key, pages.values[key].arrived_ms, msgspec.msgpack.encode(pages.values[key])) for key in pages.dirty]
        self.db.executemany("INSERT OR REPLACE INTO page VALUES (?, ?, ?, ?)", rows)
        old = self.db.execute(
            "DELETE FROM page WHERE (user_id, id) IN (SELECT user_id, id FROM page WHERE arrived_ms <= ? LIMIT ?) "
            "RETURNING user_id, id",
            (self.now_ms - self.config.late_ms, _EXPIRE_ROWS),
        ).fetchall()
        for key in old:
            pages.values.pop(key, None)
            if key in self._served:
                self._served_bytes -= self._served.pop(key).size
        users.dirty.clear()
        pages.dirty.clear()
        users.shrink(self.config.in_memory)
        pages.shrink(self.config.in_memory)
        self._due, self._loaded_ms = [], -1
        self._open_pages -= len(old)
        counts = self.counts
        counts.expired += len(old)
        counts.open_pages, counts.pages_in_memory = self._open_pages, len(self._served)
        counts.spilled = max(0, counts.open_pages - counts.pages_in_memory)

    def reload(self) -> None:
        """Go back to what was written last."""
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
        self._users, self._pages = _Cache(), _Cache()
        self._served.clear()
        self._served_bytes = 0
        self._due, self._loaded_ms, self._out = [], -1, []
        self._open_pages = self.db.execute("SELECT count(*) FROM page").fetchone()[0]

    def close(self) -> None:
        """Close the database."""
        self.db.close()


_TABLES = """
CREATE TABLE IF NOT EXISTS page (user_id INTEGER, id TEXT, arrived_ms INTEGER, value BLOB, PRIMARY KEY (user_id, id))
    WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS page_arrived ON page (arrived_ms);
CREATE TABLE IF NOT EXISTS user (id INTEGER PRIMARY KEY, due_ms INTEGER, value BLOB);
CREATE INDEX IF NOT EXISTS user_due ON user (due_ms);
"""


def joined_labels() -> tuple[str, ...]:
    """Return the labels that samples have, beside the app's own actions."""
    return (*labels_of(0, (), None), HAS_NEXT)


def labels_of(watch_ms: int, actions: Iterable[str], duration_ms: int | None, own: Iterable[str] = ()) -> dict[str, bool]:
    """Return the labels of one consumption but `has_next`: by the watch time, by the `actions` that were done, and of the
    app's `own` actions."""
    done, duration = set(actions), duration_ms or np.inf
    labels = {
        "effective_view": watch_ms >= min(duration, EFFECTIVE_VIEW_MS),
        "long_view": watch_ms >= min(duration, LONG_VIEW_MS),
    }
    labels |= {name: name in done for name in (*ACTION_LABELS, *own)}
    return labels | dict.fromkeys(sorted(done - labels.keys()), True)


def actions_of(event: FeedbackEvent) -> Iterator[str]:
    """Return the names of all actions of an event, the app's own included."""
    yield from (name for name in ACTION_LABELS if getattr(event, name))
    yield from event.actions or ()


def is_negative(page_id: str, item_id: int, share: float) -> bool:
    """Return whether a candidate is among the `share` of those not shown that become samples."""
    return _hash(f"{page_id} {item_id}") < int(share * (1 << 64)) - (1 << 63)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), signed=True)


def _rise(session: _Session, event: LoggedEvent) -> bool:
    """Take an impression into account that may be the last of its session; return whether it is one of the last two."""
    own = (event.position, event.impression_ms + event.correction_ms, event.page_id or "", event.item_id)
    same = [one for one in session.top if one[2:] == own[2:]]
    if same and same[0] >= own:
        return False
    others = [one for one in session.top if one[2:] != own[2:]]
    top = sorted([*others, own], reverse=True)[:2]
    if top == session.top:
        return False
    session.top = top
    return True


def _is_followed(session: _Session, page_id: str, item_id: int, key: tuple[int, int]) -> bool:
    """Return whether another impression of the session is behind this one."""
    return any(one[:2] > key and one[2:] != (page_id, item_id) for one in session.top)


def _row(values: bytes, place: int, rows: int) -> bytes:
    width = len(values) // rows
    return values[place * width : (place + 1) * width]
