"""Accepts feedback once: each event is durable in the log first, and then applied to its user's state.

Several processes may write to one log. Each applies the events of all of them in the order of the log, so that all have the
same states, and those that a replay of the log makes. A page reflects all feedback that was acknowledged before it was
requested, whichever process answers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from threading import Event, Lock, Thread
from time import monotonic, time

from msgspec import UNSET, structs

from pocketrank.cloud.pages.arrival import TOLERANCE_MS, ArrivalClock
from pocketrank.cloud.pages.state_snapshot import SnapshotHeader, StateSnapshot
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.streams.feedback_log import (
    Appended,
    FeedbackLog,
    FeedbackLogError,
    LogBusyError,
    LoggedEvent,
    LogOpenError,
    LogWriteError,
)
from pocketrank.device.contract import ContractError, FeedbackEvent, FeedbackReceipt, RefusedEvent, check_event

__all__ = ["FeedbackIntake"]

_PROGRESS_S = 10.0
"""Time in seconds between two lines about a replay that goes on."""
_NOTHING = Appended((), 0, ())
_SLICE_S = 0.002
"""Time in seconds that work in the background goes on for, and then pauses for as long. Pages are made meanwhile."""
_PART = 64
"""Number of records that are applied at a time in the background, in some 0.5 ms."""
_REASON_MAX = 300  # characters
_EARLIEST_MS = 946_684_800_000  # 2000; a phone whose battery was empty begins in 1970

_logger = logging.getLogger(__name__)


class FeedbackIntake:
    """Writer of accepted events to `log` and to `states`, which it first rebuilds from the log. Safe to call from several
    threads.

    A process that dies between the two loses nothing, because the next one replays the log.
    """

    def __init__(
        self,
        log: FeedbackLog,
        states: UserStates,
        clock: Callable[[], float] = time,
        steady: Callable[[], float] | None = None,
        *,
        snapshot: StateSnapshot | None = None,
    ) -> None:
        """`clock` returns the time in seconds since the epoch, UTC, and `steady` that since any moment (`ArrivalClock`). From
        `snapshot` the states begin, and it is written now and then and by `close`.
        """
        self._log, self._states, self._following = log, states, Lock()
        self.replayed = 0
        """Number of events that the states at the start were made of, from the snapshot and from the log."""
        self.dated = 0
        """Number of events whose dates were corrected."""
        self._snapshot, self._closed, self._is_due = snapshot, Event(), False
        header = snapshot and snapshot.load(states, log)
        if header:
            log.resume(header.place, header.unreadable)
        _, last = log.ends()
        shown = monotonic()
        while read := self._apply_next(states):
            if monotonic() - shown > _PROGRESS_S:
                shown = monotonic()
                _logger.info("the feedback log is replayed: %d of %d records", read, last)
        self.replayed = states.events
        self._arrival = ArrivalClock(states.latest_ms, clock, steady)
        if snapshot is not None:
            self._saving = Thread(target=self._save_regularly, name="pocketrank-snapshot", daemon=True)
            self._saving.start()

    def admit(
        self, events: Sequence[FeedbackEvent], user_id: int | None = None
    ) -> tuple[list[FeedbackEvent], tuple[RefusedEvent, ...]]:
        """Return the events that the contract allows, with their dates corrected, and the others with the reason.

        `user_id` is the one user for whom the sender may speak; None if for any.

        A phone's clock may be wrong by years, and so may this machine's. An event's date and age say what time it is by the
        device. Where that is more than a minute from the time of arrival (`ArrivalClock`), the event is dated by its age before
        its arrival. An event without an age, from a device that does not send it, keeps its date unless that is after its
        arrival or before the year 2000. Then it counts as of its arrival: it would otherwise stay the user's latest for years,
        or never be among the latest.

        So the date of an event with an age is right within a minute and the time of its way, whatever the clocks are set to
        while device and server are on. A start of the device while the event waits, or of the server, adds to that only if the
        clock was set around it, or if the last event (that waits, or that the log has) was shown more than 30 days before: the
        time since then if the clock was put back, else 30 days or that time, whichever is more. Where the first server began
        with a wrong clock, all dates are wrong alike; when it is put right, what waited meanwhile may be dated too late by as
        long as it waited. A date is found once, and its correction is kept with the event, so that the state does not depend on
        the order of arrival.
        """
        now_ms = self._arrival()
        latest_ms = max(now_ms, self._arrival.wall_ms())
        good, refused = list[FeedbackEvent](), list[RefusedEvent]()
        for index, event in enumerate(events):
            try:
                check_event(event, f"[{index}]")
                if user_id not in (None, event.user_id):
                    raise ContractError(f"[{index}].user_id", "the user of the token", "another user")
            except ContractError as error:
                refused.append(RefusedEvent(index=index, reason=str(error)[:_REASON_MAX]))
                continue
            at_ms = event.impression_ms
            if event.age_ms is UNSET:
                if not _EARLIEST_MS <= at_ms <= latest_ms:
                    at_ms = now_ms
            elif abs(at_ms + event.age_ms - now_ms) > TOLERANCE_MS:
                now_ms = self._arrival.meet(at_ms + event.age_ms)
                if abs(at_ms + event.age_ms - now_ms) > TOLERANCE_MS:
                    at_ms = now_ms - event.age_ms
            if at_ms != event.impression_ms:
                event = LoggedEvent(**structs.asdict(event), correction_ms=at_ms - event.impression_ms)
                self.dated += 1
            good.append(event)
        return good, tuple(refused)

    def together(self, batches: Sequence[Sequence[FeedbackEvent]]) -> list[FeedbackReceipt | FeedbackLogError]:
        """Accept the new events of several admitted batches in one write; return a receipt or an error for each batch.

        After an error no event of the batch had an effect, and the whole batch may be sent again.
        A batch that cannot be written fails no other: after an error each batch is written by itself. Only when other writers
        hold the log does the error stand for all, because each would meet it again.
        """
        events = [event for batch in batches for event in batch]
        try:
            accepted, _, places = self._log.append(events) if events else _NOTHING
        except LogWriteError as error:
            if len(batches) == 1 or isinstance(error, LogBusyError):
                return [error] * len(batches)
            return [result for batch in batches for result in self.together([batch])]
        if accepted:
            try:
                self._apply_own(accepted, places)
            except LogOpenError as error:  # they are durable, and will be read with the next ones
                _logger.error("The feedback log cannot be read: %s", error)
        # The log returns the accepted events in the order in which they were sent, so one pass assigns them to their batches.
        rest, receipts = deque(accepted), list[FeedbackReceipt | FeedbackLogError]()
        for batch in batches:
            before = len(rest)
            for event in batch:
                if rest and rest[0] is event:
                    rest.popleft()
            count = before - len(rest)
            receipts.append(FeedbackReceipt(accepted=count, duplicates=len(batch) - count))
        return receipts

    def follow(self) -> int:
        """Apply what other processes have accepted since the last call, with what this one accepted before; return the number
        of events. What `forget` deleted is dropped.

        Meant for the start of every page: without new events it takes the microseconds of `FeedbackLog.news`. Raises
        `LogOpenError`.
        """
        return self._catch_up() if self._log.news(self._states.place) else 0

    def _apply_own(self, events: Sequence[FeedbackEvent], places: Sequence[int]) -> None:
        """Apply what this process has just accepted, after what others accepted before it. Raises `LogOpenError`."""
        with self._following:
            if self._states.place + 1 == places[0] and places[-1] - places[0] == len(places) - 1:
                self._states.apply(events, places, dated=True)
            while self._states.place < places[-1] and self._apply_next(self._states):
                pass

    def _catch_up(self) -> int:
        with self._following:  # otherwise a second caller finds nothing new while the first still applies it
            before = self._states.events
            while self._apply_next(self._states):
                pass
            return self._states.events - before

    def prepare(self, states: UserStates, is_wanted: Callable[[], bool]) -> None:
        """Apply the log to `states`, which `switch` may then put in place. Takes at most half of a core, for other threads.

        Ends early once it is no longer wanted. Raises `LogOpenError`.
        """
        pause = self._pauses()
        while is_wanted() and self._apply_next(states, _PART):
            pause()

    def switch(self, states: UserStates) -> None:
        """Apply all feedback to `states` from here on, which `prepare` has prepared, and first what is new since.

        Raises `LogOpenError`, and nothing is changed then.
        """
        with self._following:  # what is accepted in another thread meanwhile is applied to these states afterwards
            while self._apply_next(states):
                pass
            self._states, self._is_due = states, True

    def _apply_next(self, states: UserStates, count: int | None = None) -> int:
        """Apply the next part of the log; return the place up to which it reaches, 0 when there is nothing more."""
        records = self._log.read(states.place, count or self._log.read_max)
        start = 0
        for before, user in (*records.forgotten, (len(records.events), None)):
            states.apply(records.events[start:before], records.places[start:before], dated=True)
            start = before
            if user is not None:
                states.forget((user,))
        if records.end == states.place and not records.events and not records.forgotten:
            return 0
        states.place = records.end
        return records.end

    def save(self, *, hurry: bool = False) -> bool:
        """Write a snapshot, unless another process does or nothing has changed; return whether it was written.

        The states go on changing meanwhile. Without `hurry` it takes at most half of a core. Raises `LogOpenError`, OSError.
        """
        snapshot = self._snapshot
        if snapshot is None:
            return False
        with snapshot.turn() as is_mine:
            if not is_mine:
                return False
            self._catch_up()
            with self._following:
                states, self._is_due = self._states, False
                place, parts = states.place, states.copies()
                counts = states.counts.copy() if states.counts else None
                header = SnapshotHeader(
                    mark=self._log.mark(place),
                    place=place,
                    first=self._log.ends()[0],
                    events=states.events,
                    unreadable=self._log.unreadable,
                    fingerprint=states.fingerprint(),
                    items=states.items,
                    row_words=states.row_words,
                )
            if header == snapshot.header() and not snapshot.is_unfit:
                return False
            snapshot.save(header, parts, (lambda: None) if hurry else self._pauses(), counts)
            return True

    def _pauses(self) -> Callable[[], None]:
        """Return a function that pauses for as long as its caller has worked since the last pause, unless that was short."""
        began = monotonic()

        def pause() -> None:
            nonlocal began
            worked = monotonic() - began
            if worked >= _SLICE_S:
                self._closed.wait(worked)
                began = monotonic()

        return pause

    def _save_regularly(self) -> None:
        assert self._snapshot is not None
        config, saved_at = self._snapshot.config, monotonic()
        while not self._closed.wait(config.check_s):
            header = self._snapshot.header()
            saved = 0 if header is None else header.place
            if self._is_due or self._states.place - saved >= config.events or monotonic() - saved_at >= config.every_s:
                saved_at = monotonic()
                self._try_to_save()

    def _try_to_save(self, *, hurry: bool = False) -> None:
        try:
            self.save(hurry=hurry)
        except (FeedbackLogError, OSError) as error:
            _logger.warning("no snapshot of the users' states could be written: %s", error)

    def close(self) -> None:
        """Write a snapshot, and let none be written after it. The log must still be open; a second call does nothing."""
        if self._snapshot is not None and not self._closed.is_set():
            self._closed.set()  # one that is being written no longer pauses
            self._saving.join()
            self._try_to_save(hurry=True)
