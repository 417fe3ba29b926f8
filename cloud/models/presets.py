"""Named sizes of the device model."""

from __future__ import annotations

from cloud.models.reranker import UpperConfig

__all__ = ["PRESETS"]

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
