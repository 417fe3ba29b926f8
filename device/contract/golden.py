"""Golden cases of a bundle: known inputs with their scores, which a device checks before it uses the bundle."""

from __future__ import annotations

from pocketrank.device.contract.bundle import Form, Format, Group, Precision
from pocketrank.device.contract.wire import Block, Versioned, Wire

__all__ = ["Golden", "GoldenCase", "GoldenTolerance", "ScoreRange"]


class GoldenCase(Wire, frozen=True, kw_only=True):
    """Inputs of the whole model and the scores that it must return for them."""

    form: Form
    inputs: dict[str, Block]
    """Inputs by their contract names (`FeatureSpec`), without masks. Gaps MUST be whole, descending and not negative: only then
    does a device that appends the events to its history compute the same gaps."""
    scores: Block
    """f4 [1, N, tasks]"""
    group: Group | None = None


class GoldenTolerance(Wire, frozen=True, kw_only=True):
    """Largest difference from the golden scores that a model of this form, format and precision may have."""

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
    """The file `golden.msgpack` of a bundle."""

    cases: tuple[GoldenCase, ...]
    tolerances: tuple[GoldenTolerance, ...]
    ranges: tuple[ScoreRange, ...] = ()
    """The scores to expect in use. A device detects drift by them."""
