"""Sizes of the device model, and names of some sizes.

This module needs no torch: a server reads the sizes in the record of a run.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PRESETS", "UpperConfig"]


@dataclass(frozen=True)
class UpperConfig:
    """Widths of the device model. The defaults are the `tiny` preset."""

    width: int = 64
    """Width of a candidate, of an event and of the context."""
    category_width: int = 8
    """Width of the embedding of a categorical feature."""
    bins: int = 0
    """Soft bins of a number, beside the number itself; 0 for none."""
    cross_width: int = 0
    """Width of the embedding of a time, position or pXTR difference before it is crossed; 0 leaves the crossings out."""
    pairs: bool = True
    """Whether pXTR differences are crossed; they are the only feature of pairs of candidate and watched item."""
    heads: int = 4
    """Attention heads."""
    head_width: int = 16
    """Width of an attention head."""
    experts: int = 1
    """Experts of the multi-gate mixture."""
    expert_width: int = 64
    """Width of an expert."""
    towers: tuple[int, ...] = (64,)
    """Widths of the hidden layers of each task's tower."""
    chosen_max: int = 8
    """Largest distance of a chosen candidate that has an embedding of its own; those further back share it."""
    dropout: float = 0.1
    """Dropout between experts and towers."""


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
"""`tiny` was chosen by measurement (docs/measuring.md); `paper` has the widths of Gong et al. (CIKM 2022, section 6.1)."""
