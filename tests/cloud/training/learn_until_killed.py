"""Learns all samples of a log in processes that are killed:
`python -m tests.cloud.training.learn_until_killed LOG PUBLISHED STATE N`.

The first N processes are killed with -9 at random moments; the last one ends by itself.
"""

import os
import random
import signal
import sys
from pathlib import Path

from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.cloud.training.guard import GuardConfig
from pocketrank.cloud.training.increments import IncrementConfig
from pocketrank.cloud.training.learner import Learner, LearnerConfig
from pocketrank.cloud.training.learning_base import open_base
from pocketrank.cloud.training.row_table import RowConfig

ROWS = RowConfig(learning_rate=0.2)
CONFIG = LearnerConfig(
    increments=IncrementConfig(ROWS, ROWS, statistics=True),
    guard=GuardConfig(window=200, labels_min=10),
    samples=80,
    good_every=400,
    publish_s=1e-6,
    snapshot_s=0.05,
)
"""Batches of 40 samples are read one by one, and published one by one."""


def learn_all(log: Path, run: Path, state: Path, step: int | None = None) -> int:
    """Learn what the log has, and return how often rows went back; write a byte to the file `step` after each batch."""
    events = SqliteEventLog(log)
    learner = Learner(events, open_base(run), state, CONFIG)
    while learner.step():
        learner.publish_if_due()
        if step is not None:
            os.write(step, b".")
    learner.close()
    events.close()
    return learner.counts.rollbacks


if __name__ == "__main__":
    log, run, state, kills = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    rng, killed = random.Random(0), 0
    while True:
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            os.close(ours)
            learn_all(log, run, state, theirs)
            os._exit(0)
        os.close(theirs)
        if killed < kills:
            for _ in range(rng.randint(1, 4)):
                os.read(ours, 1)
            for _ in range(rng.randint(0, 200_000)):  # somewhere in the next step
                pass
            os.kill(child, signal.SIGKILL)
        else:
            while os.read(ours, 1024):
                pass
        status = os.waitpid(child, 0)[1]
        os.close(ours)
        killed += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):
            print(killed)
            sys.exit(os.WEXITSTATUS(status))
