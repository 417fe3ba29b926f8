"""Accepts feedback once: each event is durable in the log first, and then applied to its user's state.

Several processes may write to one log. Each applies the events that it accepts itself and follows those that the others accept.
So a page reflects all feedback that was acknowledged before it was requested, whichever process answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from threading import Lock

from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.streams.feedback_log import FeedbackLog, FeedbackLogError, LogBusyError, LogWriteError
from pocketrank.device.contract import ContractError, FeedbackEvent, FeedbackReceipt

__all__ = ["EVENT_ID_MAX", "EXPERIMENT_MAX", "FeedbackIntake", "check_experiment"]

EVENT_ID_MAX = 128
"""Maximum length of an event id in characters; a UUID has 36."""
EXPERIMENT_MAX = 128
"""Maximum length of an experiment's name in characters."""

_REPLAY_BATCH = 4096


class FeedbackIntake:
    """Writer of accepted events to `log` and to `states`, which it first rebuilds from the log. Safe to call from several
    threads.

    A process that dies between the two loses nothing, because the next one replays the log.
    """

    def __init__(self, log: FeedbackLog, states: UserStates) -> None:
        self._log, self._states, self._following = log, states, Lock()
        self.replayed = 0
        """Number of events that the log held at the start."""
        for batch in _batches(log.replay()):
            states.apply(batch)
            self.replayed += len(batch)

    def check(self, events: Sequence[FeedbackEvent], path: str = "$.events") -> None:
        """Raise `ContractError` for an event id that is empty or too long, or an unusable experiment.

        `path` is where the events stand in the request.
        """
        for i, event in enumerate(events):
            if not 1 <= len(event.event_id) <= EVENT_ID_MAX:
                got = f"{len(event.event_id)} characters"
                raise ContractError(f"{path}[{i}].event_id", f"an id of 1 to {EVENT_ID_MAX} characters", got)
            check_experiment(event.experiment, f"{path}[{i}].experiment")

    def together(self, batches: Sequence[Sequence[FeedbackEvent]]) -> list[FeedbackReceipt | FeedbackLogError]:
        """Accept the new events of several checked batches in one write; return a receipt or an error for each batch.

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
        """Apply the events that other processes have accepted since the last call, and return their number.

        Meant for the start of every page: without new events it takes the microseconds of `FeedbackLog.poll`. Raises
        `LogOpenError`.
        """
        with self._following:  # otherwise a second caller finds nothing new while the first still applies it
            news = self._log.poll()
            if news:
                self._states.apply(news)
            return len(news)


def check_experiment(name: str | None, path: str) -> None:
    """Raise `ContractError` for an experiment whose name is empty or longer than `EXPERIMENT_MAX`; None is no experiment."""
    if name is not None and not 1 <= len(name) <= EXPERIMENT_MAX:
        raise ContractError(path, f"a name of 1 to {EXPERIMENT_MAX} characters", f"{len(name)} characters")


def _batches(events: Iterator[FeedbackEvent]) -> Iterator[list[FeedbackEvent]]:
    while batch := list(islice(events, _REPLAY_BATCH)):
        yield batch
