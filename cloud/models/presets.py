"""Sizes of the device model, and names for some. Needs no torch: a server reads them in the record of a run."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PRESETS", "UpperConfig"]


@dataclass(frozen=True)
class UpperConfig:
    """Widths of the device model. The defaults are the `tiny` preset."""

    width: int = 64
    """Of a candidate, an event and the context."""
    category_width: int = 8
    """Embedding of a categorical feature."""
    bins: int = 0
    """Soft bins of a number; 0 leaves numbers as they are."""
    cross_width: int = 0
    """Embedding of a time, position or pXTR difference before it is crossed; 0 leaves the crossings out."""
    pairs: bool = True
    """Whether pXTR differences are crossed, the one crossing of pairs of candidate and watched item."""
    heads: int = 4
    """Attention heads."""
    head_width: int = 16
    """Width of a head."""
    experts: int = 1
    """Of the multi-gate mixture."""
    expert_width: int = 64
    """Of each expert."""
    towers: tuple[int, ...] = (64,)
    """Hidden layers of each task's tower."""
    chosen_max: int = 8
    """Longest list of chosen candidates that is told apart by distance; those further back count as that far."""
    dropout: float = 0.1
    """Between experts and towers."""


PRESETS: dict[str, UpperConfig] = {
    "tiny": UpperConfig(),
    "full": UpperConfig(bins=8, cross_width=8, experts=4, expert_width=32, towers=(32,)),
    "paper": UpperConfig(
        width=128,
        category_width=16,
        bins=16,
        cross_width=8,
        heads=8,
        head_width=16,
        experts=12,
        expert_width=64,
        towers=(128, 64, 32),
    ),
}
"""`tiny` is chosen by measurement (docs/measuring.md); `paper` has the widths that Gong et al. (CIKM 2022, section 6.1)
publish.
"""
