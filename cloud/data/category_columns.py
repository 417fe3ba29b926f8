"""Columns of categories: a category with several values, such as the genres of a film, has one column for each.

They are `genres[0]`, `genres[1]` and so on, in the log, on a page and in the feature spec. They share one dictionary and, in
models, one table of embeddings. An item with fewer values has 0, which is unknown, in the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["VALUES_MAX", "category_of", "shared_sizes", "table_columns", "value_columns"]

VALUES_MAX = 8
"""Largest number of values of a category."""

_VALUE = re.compile(r"(.+)\[\d+\]")


def value_columns(category: str, values: int) -> tuple[str, ...]:
    """Return the names of the columns of a category with several values."""
    return tuple(f"{category}[{place}]" for place in range(values))


def category_of(column: str) -> str:
    """Return the category that a column belongs to: `genres` for `genres[1]`, the name itself for any other."""
    match = _VALUE.fullmatch(column)
    return match[1] if match else column


def table_columns(columns: Sequence[str]) -> list[list[int]]:
    """Return the places of the columns of each category, which share a table, in the order of their first columns."""
    places: dict[str, list[int]] = {}
    for place, column in enumerate(columns):
        places.setdefault(category_of(column), []).append(place)
    return list(places.values())


def shared_sizes(columns: Sequence[str], codes: NDArray[np.integer]) -> tuple[int, ...]:
    """Return the number of codes of each column, 0 included, the same for all of one category. `codes` [n, C] are all there
    are."""
    sizes = [1] * len(columns)
    for places in table_columns(columns):
        for place in places:
            sizes[place] = int(codes[:, places].max(initial=0)) + 1
    return tuple(sizes)
