"""Takes feedback in, once: durable in the log first, then in the users' states.

Several processes may take feedback into one log. Each applies what it accepts itself, and follows what the others accept, so
that a page holds all feedback that was acknowledged before it was asked for, whichever process answers.
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
"""Longest event id in characters; a UUID has 36."""
EXPERIMENT_MAX = 128
"""Longest name of an experiment in characters."""

_REPLAY_BATCH = 4096


class FeedbackIntake:
    """Rebuilds `states` from what `log` holds, then keeps the two together. Safe to call from several threads.

    A process that dies between the log and the states loses nothing, because the next one replays the log.
    """

    def __init__(self, log: FeedbackLog, states: UserStates) -> None:
        self._log, self._states, self._following = log, states, Lock()
        self.replayed = 0
        """Events that the log held already."""
        for batch in _batches(log.replay()):
            states.apply(batch)
            self.replayed += len(batch)

    def __call__(self, events: Sequence[FeedbackEvent], path: str = "$.events") -> FeedbackReceipt:
        """Keep the new ones of `events`. Raises as `check` does, and `LogWriteError`; then no event had an effect and the whole
        batch may be sent again.
        """
        self.check(events, path)
        (result,) = self.together([events])
        if isinstance(result, FeedbackLogError):
            raise result
        return result

    def check(self, events: Sequence[FeedbackEvent], path: str = "$.events") -> None:
        """Raises `ContractError` for an event id that cannot be told from another or an unusable experiment.

        `path` is where the events came from.
        """
        for i, event in enumerate(events):
            if not 1 <= len(event.event_id) <= EVENT_ID_MAX:
                got = f"{len(event.event_id)} characters"
                raise ContractError(f"{path}[{i}].event_id", f"an id of 1 to {EVENT_ID_MAX} characters", got)
            check_experiment(event.experiment, f"{path}[{i}].experiment")

    def together(self, batches: Sequence[Sequence[FeedbackEvent]]) -> list[FeedbackReceipt | FeedbackLogError]:
        """Keep the new ones of several checked batches in one write; for each its receipt, or why nothing of it was kept.

        One that cannot be kept fails no other: then each is tried by itself, unless the log is held by other writers, which
        would be the same for all.
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
        rest, receipts = deque(accepted), list[FeedbackReceipt | FeedbackLogError]()
        for batch in batches:
            left = len(rest)
            for event in batch:
                if rest and rest[0] is event:  # what is accepted is in the order of the events
                    rest.popleft()
            count = left - len(rest)
            receipts.append(FeedbackReceipt(accepted=count, duplicates=len(batch) - count))
        return receipts

    def follow(self) -> int:
        """Apply what other processes have accepted since the last call; how many events that were. Raises `LogOpenError`.

        For the head of every page: without news it takes the microseconds of `FeedbackLog.news`.
        """
        with self._following:  # or a second caller finds no news while the first still applies them
            news = self._log.poll()
            if news:
                self._states.apply(news)
            return len(news)


def check_experiment(name: str | None, path: str) -> None:
    """Raises `ContractError` for an experiment with an empty name or a longer one than `EXPERIMENT_MAX`."""
    if name is not None and not 1 <= len(name) <= EXPERIMENT_MAX:
        raise ContractError(path, f"a name of 1 to {EXPERIMENT_MAX} characters", f"{len(name)} characters")


def _batches(events: Iterator[FeedbackEvent]) -> Iterator[list[FeedbackEvent]]:
    while batch := list(islice(events, _REPLAY_BATCH)):
        yield batch
