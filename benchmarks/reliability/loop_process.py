"""A process of the loop, which is forked from one that has imported what it needs: a start takes a fraction of a second."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from threading import Event

import pocketrank.cloud.serving.app
import pocketrank.cloud.serving.served_run  # noqa: F401 - imported before a fork
from pocketrank.cloud.pipeline.config import PipelineConfig
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.serving.process.serve import serve
from pocketrank.cloud.training.learner import LearnerConfig
from pocketrank.cloud.training.learning import LearningConfig, Part, learn
from pocketrank.cloud.training.run import Run

__all__ = ["run_process"]

_BUDGET = """
[limits]
page_ms = 10_000
"""


def run_process(process: str, run: Path, db: Path, port: int) -> None:
    """Run `server`, `join` or `train` until SIGTERM, or -9."""
    if process == "server":
        file = run / "pipeline.toml"
        if not file.exists():
            file.write_text(_BUDGET)
        config = replace(ServingConfig(), pipeline=PipelineConfig.open(file))
        serve(Run.open(run), None, port=port, feedback_db=db, config=config)
        return
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    part: Part = "join" if process == "join" else "train"
    learn(Run.open(run), db, stop=stop, parts=(part,), config=LearningConfig(learner=LearnerConfig(publish_s=0.2)))
