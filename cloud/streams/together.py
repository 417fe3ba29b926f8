"""Does waiting pieces of work together: while one caller works, others queue, and the next takes all of theirs at once.

For work whose cost is in the act and not in its size, as a sync of the disk is: callers that come one at a time pay nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Generic, TypeVar

__all__ = ["Together"]

T = TypeVar("T")
R = TypeVar("R")


class _Waiting(Generic[T, R]):
    __slots__ = ("done", "error", "piece", "result")

    def __init__(self, piece: T) -> None:
        self.piece, self.done = piece, False
        self.result: R | None = None
        self.error: BaseException | None = None


class Together(Generic[T, R]):
    """Calls `work` with the pieces of all callers that wait, at most `most` at a time; it gives one result for each.

    `work` runs in the thread of one of the callers, never in two at once. What it raises is for every caller of that time,
    unless there were several: then each piece is tried by itself, so that one that cannot be done fails nobody else's. An error
    of the kind `alike` would be the same for each, and is not tried again.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R]], most: int, alike: type[Exception]) -> None:
        self._work, self._most, self._alike = work, most, alike
        self._turn, self._lock = Lock(), Lock()
        self._waiting: list[_Waiting[T, R]] = []

    def __call__(self, piece: T) -> R:
        """The result for `piece`, once it is done. Raises what `work` raises."""
        mine: _Waiting[T, R] = _Waiting(piece)
        with self._lock:
            self._waiting.append(mine)
        while not mine.done:
            with self._turn:
                if not mine.done:
                    with self._lock:
                        taken, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                    self._do(taken)
        if mine.error is not None:
            raise mine.error
        return mine.result  # type: ignore[return-value]  # an R: it is done, and without an error

    def _do(self, taken: list[_Waiting[T, R]]) -> None:
        try:
            results = self._work([one.piece for one in taken])
            for one, result in zip(taken, results, strict=True):
                one.result = result
        except BaseException as error:
            if len(taken) > 1 and isinstance(error, Exception) and not isinstance(error, self._alike):
                for one in taken:
                    self._do([one])
                return
            for one in taken:
                one.error = error
        for one in taken:
            one.done = True
