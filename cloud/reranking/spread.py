"""Keeps a page from being more of the same: a soft cap on the candidates of a category that come before all others had theirs.

A ranker's best thirty are often near copies of one another, chosen for the same error in the same direction; then neither the
user nor the model on the device has a choice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["spread_categories"]


def spread_categories(category: NDArray[np.integer], most: int) -> NDArray[np.int64]:
    """The new order of candidates [n] that stand in ranked order with these categories [n].

    First go the best `most` of each category, then the next `most` of each, and so on, each round in ranked order. Nothing is
    dropped. A category is any code, unknown (0) included.
    """
    by_category = np.argsort(category, kind="stable")
    sorted_codes = category[by_category]
    first = np.searchsorted(sorted_codes, sorted_codes)
    nth = np.empty(len(category), np.int64)
    nth[by_category] = np.arange(len(category)) - first
    return np.argsort(nth // most, kind="stable")
