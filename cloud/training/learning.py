"""Join, trainer and publisher of one machine, in one process beside a server (`pocketrank learn`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Literal

import numpy as np
import torch

from pocketrank.cloud.published.ids import IdLookup
from pocketrank.cloud.published.published import Published, PublishedRecord, published_digest
from pocketrank.cloud.streams.event_log import EventLog, EventLogError
from pocketrank.cloud.streams.follower import Follower
from pocketrank.cloud.streams.join import HAS_NEXT, Join, JoinConfig
from pocketrank.cloud.streams.messages import ItemChange
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog, SqliteEventsConfig
from pocketrank.cloud.training.learner import Learner, LearnerConfig
from pocketrank.cloud.training.learning_base import open_base
from pocketrank.cloud.training.run import Run

__all__ = ["Durations", "LearningConfig", "Part", "Progress", "learn"]

Part = Literal["join", "train"]
_PAUSE_S = 0.02
_RETRY_S = 1.0
_PROGRESS_S = 1.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearningConfig:
    """Join and trainer."""

    join: JoinConfig = JoinConfig()
    learner: LearnerConfig = LearnerConfig()
    feedback: SqliteLogConfig = SqliteLogConfig()
    """Of the feedback log; the same as that of the server."""
    events: SqliteEventsConfig = field(default_factory=SqliteEventsConfig)
    threads: int = 1
    """Threads of torch."""


class Durations:
    """Durations of the items of a published run, and of those that were put since."""

    def __init__(self, published: Published, record: PublishedRecord, log: EventLog) -> None:
        self._at, self._items = IdLookup(np.asarray(published.item_id)), Follower(log, "items", ItemChange)
        self._published = np.asarray(published.item_float)[:, record.float_names.index("duration_ms")]
        self._put: dict[int, int] = {}

    def follow(self) -> None:
        """Take notice of changes of items. Raises `EventLogError`."""
        for _, change in self._items.new():
            if not change.removed:
                self._put[change.item_id] = change.duration_ms

    def __call__(self, item_id: int) -> int | None:
        """Return the duration of an item in milliseconds; None where it is not known."""
        if (put := self._put.get(item_id)) is not None:
            return put or None
        duration = float(self._published[self._at.one(item_id)])
        return int(duration) if duration > 0 else None


@dataclass
class Progress:
    """What the process does, for those who watch it."""

    join: Join | None
    learner: Learner | None

    def plain(self) -> dict[str, float | int | dict[str, float]]:
        """Return all counters by name."""
        found: dict[str, float | int | dict[str, float]] = {}
        if self.join is not None:
            found |= {f"join_{name}": value for name, value in vars(self.join.counts).items()}
        if (learner := self.learner) is not None:
            counts = vars(learner.counts)
            found |= {f"train_{name}": value for name, value in counts.items() if isinstance(value, int | float)}
            found |= {"sequence": learner.sequence, "item_rows": len(learner.training.items)}
            found |= {"user_rows": len(learner.training.users), "discarded_gradients": learner.training.items.discarded}
            if (verdict := learner.counts.verdict) is not None:
                found |= {"predicted_over_observed": verdict.ratio, "relative_loss": verdict.loss, "skewed": verdict.skewed}
        return found


def learn(
    run: Run,
    feedback_db: Path,
    *,
    stop: Event,
    parts: tuple[Part, ...] = ("join", "train"),
    config: LearningConfig | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Learn from the feedback on the pages of `run`, whose feedback log is in the file `feedback_db`, until `stop` is set.

    States are in files beside the log, the trainer's for each run. `watch` is called about once a second. While the log cannot
    be read or written, it is tried again. Raises `RunError`, `PublishedError`, and `EventLogOpenError` at the start.
    """
    config = config or LearningConfig()
    torch.set_num_threads(config.threads)
    with _opened(run, feedback_db, parts, config) as (join, durations, learner):
        progress, watched_at = Progress(join, learner), 0.0
        while not stop.is_set():
            read = 0
            try:
                if join is not None:
                    durations.follow()
                    read += join.step()
                if learner is not None:
                    read += learner.step()
                    learner.publish_if_due()
            except EventLogError as error:
                _logger.error("the event log fails, and is tried again: %s", error)
                stop.wait(_RETRY_S)
            if monotonic() - watched_at >= _PROGRESS_S:
                watched_at = monotonic()
                watch(progress)
            if not read:
                stop.wait(_PAUSE_S)
        watch(progress)


@contextmanager
def _opened(
    run: Run, feedback_db: Path, parts: tuple[Part, ...], config: LearningConfig
) -> Iterator[tuple[Join | None, Durations, Learner | None]]:
    with ExitStack() as stack:
        feedback = stack.enter_context(closing(SqliteFeedbackLog(feedback_db, config.feedback)))
        log = stack.enter_context(closing(SqliteEventLog(feedback.events, feedback, config.events)))
        published, record = Published.open(run.published)
        durations = Durations(published, record, log)
        join = learner = None
        if "join" in parts:
            of_run = replace(config.join, has_next=HAS_NEXT in record.tasks, actions=record.actions)
            join = stack.enter_context(closing(Join(log, Path(f"{feedback.events}-join"), durations, of_run)))
        if "train" in parts:
            state = Path(f"{feedback.events}-learned-{published_digest(run.published)[:8]}")
            learner = stack.enter_context(closing(Learner(log, open_base(run.published), state, config.learner)))
        yield join, durations, learner
