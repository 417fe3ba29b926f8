"""Accepts feedback once: each event is durable in the log first, and then applied to its user's state.

Several processes may write to one log. Each applies the events that it accepts itself and follows those that the others accept.
So a page reflects all feedback that was acknowledged before it was requested, whichever process answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from threading import Lock
from time import time

from msgspec import structs

from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.streams.feedback_log import FeedbackLog, FeedbackLogError, LogBusyError, LoggedEvent, LogWriteError
from pocketrank.device.contract import ContractError, FeedbackEvent, FeedbackReceipt, RefusedEvent, check_event

__all__ = ["FeedbackIntake"]

_REPLAY_BATCH = 4096
_REASON_MAX = 300  # characters
_EARLIEST_MS = 946_684_800_000  # 2000; a phone whose battery was empty begins in 1970


class FeedbackIntake:
    """Writer of accepted events to `log` and to `states`, which it first rebuilds from the log. Safe to call from several
    threads.

    A process that dies between the two loses nothing, because the next one replays the log.
    """

    def __init__(self, log: FeedbackLog, states: UserStates, clock: Callable[[], float] = time) -> None:
        """`clock` returns the time of arrival in seconds since the epoch, UTC."""
        self._log, self._states, self._clock, self._following = log, states, clock, Lock()
        self.replayed = 0
        """Number of events that the log held at the start."""
        self.dated = 0
        """Number of events whose dates were corrected."""
        for batch in _batches(log.replay()):
            self._forget()
            states.apply(batch)
            self.replayed += len(batch)

    def admit(
        self, events: Sequence[FeedbackEvent], user_id: int | None = None
    ) -> tuple[list[FeedbackEvent], tuple[RefusedEvent, ...]]:
        """Return the events that the contract allows, with their dates corrected, and the others with the reason.

        `user_id` is the one user for whom the sender may speak; None if for any.

        A phone's clock may be wrong by years. An event that is dated after its arrival, or before the year 2000, counts as of
        its arrival: it would otherwise stay the user's latest for years, or never be among the latest.
        """
        now_ms = int(1e3 * self._clock())
        good, refused = list[FeedbackEvent](), list[RefusedEvent]()
        for index, event in enumerate(events):
            try:
                check_event(event, f"[{index}]")
                if user_id not in (None, event.user_id):
                    raise ContractError(f"[{index}].user_id", "the user of the token", "another user")
            except ContractError as error:
                refused.append(RefusedEvent(index=index, reason=str(error)[:_REASON_MAX]))
                continue
            if not _EARLIEST_MS <= event.impression_ms <= now_ms:
                event = LoggedEvent(**structs.asdict(event), correction_ms=now_ms - event.impression_ms)
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
            accepted = self._log.append(events).accepted if events else ()
        except LogWriteError as error:
            if len(batches) == 1 or isinstance(error, LogBusyError):
                return [error] * len(batches)
            return [result for batch in batches for result in self.together([batch])]
        if accepted:
            self._states.apply(accepted)
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
        """Apply the events that other processes have accepted since the last call, and return their number. States of users
        who were forgotten are dropped first; what this process accepted of them since then is known again after a restart.

        Meant for the start of every page: without new events it takes the microseconds of `FeedbackLog.poll`. Raises
        `LogOpenError`.
        """
        with self._following:  # otherwise a second caller finds nothing new while the first still applies it
            news = self._log.poll()
            self._forget()
            if news:
                self._states.apply(news)
            return len(news)

    def _forget(self) -> None:
        if users := self._log.forgotten():
            self._states.forget(users)


def _batches(events: Iterator[FeedbackEvent]) -> Iterator[list[FeedbackEvent]]:
    while batch := list(islice(events, _REPLAY_BATCH)):
        yield batch
