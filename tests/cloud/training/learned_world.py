"""A small run that can be learned on, and samples of users on it whose taste is made up."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.serving.published import WorldSize, publish_small
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.streams.event_log import EventLog, NewRecord
from pocketrank.cloud.streams.messages import Sample, ServedInputs
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.cloud.training.learner import Learner, LearnerConfig
from pocketrank.cloud.training.learning_base import open_base
from pocketrank.device.codec import to_msgpack

__all__ = ["append", "learner_of", "published", "samples"]

_NOW_MS = 1_900_000_000_000
_TASKS = 6


def published(folder: Path) -> Path:
    """Return the folder of what a small run with random weights publishes into `folder`."""
    publish_small(folder, WorldSize(1))
    return folder / "published"


def samples(folder: Path, count: int, seed: int = 0, *, flipped: bool = False, of: int = 40) -> list[Sample]:
    """Return samples of a world in which few items please, the even ones more often, in batches of `of`."""
    tables, _ = Published.open(folder)
    rng, items, users = np.random.default_rng(seed), tables.item_id[1:], tables.user_id[1:]
    width = tables.history_feedback.shape[2]
    found = []
    for number in range(count):
        past = rng.choice(items, 5)
        item = int(rng.choice(items[:60]))
        pleases = bool(rng.random() < (0.2 if item % 2 == 0 else 0.05)) != flipped
        found.append(
            Sample(
                batch=seed * 1_000_000 + number // of + 1, of=of, page_id=f"p{seed}-{number // 3}", item_id=item, place=0,
                event_ms=_NOW_MS + number, run="run", pxtr=np.full(_TASKS, 0.5, "<f4").tobytes(),
                labels=dict.fromkeys(("effective_view", "long_view", "like"), pleases)
                | {"follow": False, "dislike": False, "has_next": True},
                inputs=ServedInputs(
                    user_id=int(rng.choice(users[:30])), scene=0, hour=3, history_item=past.astype("<i8").tobytes(),
                    history_feedback=np.zeros((5, width), "<f4").tobytes(),
                ),
            )
        )  # fmt: skip
    by_page = {sample.page_id: sample.inputs for sample in found}  # the samples of a page have the same
    return [
        Sample(**{name: getattr(one, name) for name in one.__struct_fields__ if name != "inputs"}, inputs=by_page[one.page_id])
        for one in found
    ]


def append(log: EventLog, made: Sequence[Sample]) -> None:
    """Append samples, each batch at once."""
    batches: dict[int, list[Sample]] = {}
    for sample in made:
        batches.setdefault(sample.batch, []).append(sample)
    for batch in batches.values():
        log.append("samples", [NewRecord(one.inputs.user_id, to_msgpack(one)) for one in batch])


def learner_of(folder: Path, log: EventLog, state: Path, **config: object) -> Learner:
    """Return a learner on top of what is published in `folder`."""
    return Learner(log, open_base(folder), state, LearnerConfig(**config))  # type: ignore[arg-type]


if __name__ == "__main__":  # learns until it is killed
    opened = SqliteEventLog(Path(sys.argv[2]))
    learner = learner_of(Path(sys.argv[1]), opened, Path(sys.argv[3]), publish_s=0.05, samples=100)
    print("begun", flush=True)
    while True:
        learner.step()
        learner.publish_if_due()
