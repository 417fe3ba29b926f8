"""The pipeline of a page: its file, its stages in order, its filters and what it falls back to.

Everything that holds for any stage belongs here. A stage of its own kind belongs in `retrieval`, `ranking` or `reranking`. The
names below are what a stage or channel of your own imports.
"""

from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.stage import Deadline, OutOfTimeError, Query, Resources, Stage, StageConfig

__all__ = ["CandidateSet", "Deadline", "OutOfTimeError", "Query", "Resources", "Stage", "StageConfig"]
