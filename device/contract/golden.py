"""What a bundle's models answer: known inputs and scores, which a device tries before it uses the bundle."""

from __future__ import annotations

from pocketrank.device.contract.bundle import Form, Format, Group, Precision
from pocketrank.device.contract.wire import Block, Versioned, Wire

__all__ = ["Golden", "GoldenCase", "GoldenTolerance", "ScoreRange"]


class GoldenCase(Wire, frozen=True, kw_only=True):
    """Inputs of the whole model by their contract names (`FeatureSpec`), without masks, and its scores f4 [1, N, tasks].

    Gaps MUST be whole, not negative and descending: a device then comes to the same ones through its history of events.
    """

    form: Form
    inputs: dict[str, Block]
    scores: Block
    group: Group | None = None


class GoldenTolerance(Wire, frozen=True, kw_only=True):
    """How far a model of this kind may be from the scores."""

    form: Form
    format: Format
    precision: Precision
    max_diff: float


class ScoreRange(Wire, frozen=True, kw_only=True):
    """Mean and standard deviation of each task's scores on real rows."""

    form: Form
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Golden(Versioned, frozen=True, kw_only=True):
    """The file `golden.msgpack`. `ranges` is what scores look like in use, by which drift is told."""

    cases: tuple[GoldenCase, ...]
    tolerances: tuple[GoldenTolerance, ...]
    ranges: tuple[ScoreRange, ...] = ()
