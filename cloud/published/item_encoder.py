"""Rows of items that the run does not have, from their attributes alone: a new item has them until it has its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.category_columns import shared_sizes
from pocketrank.cloud.published.graphs import open_session
from pocketrank.cloud.published.published import Published, PublishedError, PublishedRecord
from pocketrank.cloud.streams.messages import ItemChange
from pocketrank.cloud.vectors.index import AGE_UNKNOWN

__all__ = ["ItemEncoder", "NewItems", "author_codes"]

_GRAPH, _STATISTICS = "item_encoder.onnx", "item_statistics.npy"
_OUTPUTS = ("item_row", "item_identity", "item_vector")


class NewItems(NamedTuple):
    """Attributes of n items."""

    author: NDArray[np.int64]
    """[n] code of the author, 0 = unknown"""
    category: NDArray[np.int64]
    """[n] code, 0 = unknown"""
    content: NDArray[np.float32]
    """[n, C] content vectors, zeros = unknown"""
    categories: NDArray[np.int64]
    """[n, M] codes of further categories"""
    floats: NDArray[np.float32]
    """[n, B] further numbers, NaN = unknown"""
    duration_ms: NDArray[np.float32]
    """[n], 0 = unknown"""
    upload_ms: NDArray[np.int64]
    """[n], `AGE_UNKNOWN` = unknown"""


class ItemEncoder:
    """Encoder of the run published in `folder`. Raises `PublishedError` where the run has none, as those of before."""

    def __init__(self, folder: Path, published: Published, record: PublishedRecord) -> None:
        codes, self._record = np.asarray(published.item_category), record
        self.author_code = author_codes(published, record)
        """Codes of authors by their ids."""
        self._graph = open_session(folder / _GRAPH)
        self._inputs = {one.name: one.shape for one in self._graph.get_inputs()}
        try:
            self._statistics = np.asarray(np.load(folder / _STATISTICS, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise PublishedError(f"Expected the statistics of items, got: {error} - at {folder / _STATISTICS}") from error
        if not {"author", "category"} <= set(self._inputs) or "statistics" not in self._inputs:
            raise PublishedError(f"Expected an encoder of items, got inputs {sorted(self._inputs)} - at {folder / _GRAPH}")
        self._block = len(record.tasks) + 1
        names = record.category_names
        sizes = dict(zip(names, shared_sizes(names, codes), strict=True))
        of_author, of_category = sizes.pop("author"), sizes.pop("category")
        self._sizes = [np.array(size, np.int64) for size in (of_author, of_category, list(sizes.values()))]
        """Numbers of codes of authors, of categories and of each further column of categories."""
        # An item of the same author, or category, has the statistics of that.
        self._of_author = _first_of(codes[:, names.index("author")])
        self._of_category = _first_of(codes[:, names.index("category")])

    @property
    def content_width(self) -> int:
        """Width C of content vectors; 0 where the run has none."""
        return self._width("content")

    @property
    def floats_width(self) -> int:
        """Number B of further numbers."""
        return self._width("floats")

    @property
    def categories_width(self) -> int:
        """Number M of columns of further categories."""
        return self._width("categories")

    def columns_of(self, puts: Sequence[ItemChange]) -> dict[str, NDArray[Any]]:
        """Return the rows of items that were put, as a server that knows nothing else of them has them."""
        return self(self.new_items(puts))

    def new_items(self, puts: Sequence[ItemChange]) -> NewItems:
        """Return the attributes of items that were put."""
        further, floats = self._record.category_names[2:], self._record.float_names[1 : 1 + self.floats_width]
        return NewItems(
            author=np.array([self.author_code.get(one.author_id, 0) for one in puts], np.int64),
            category=np.array([one.category for one in puts], np.int64),
            content=_columns([one.vector for one in puts], self.content_width, np.float32),
            categories=_columns(
                [[one.categories.get(name, 0) for name in further] for one in puts], self.categories_width, np.int64
            ),
            floats=_columns([[one.floats.get(name, np.nan) for name in floats] for one in puts], len(floats), np.float32),
            duration_ms=np.array([one.duration_ms for one in puts], np.float32),
            upload_ms=np.array([AGE_UNKNOWN if one.upload_ms is None else one.upload_ms for one in puts], np.int64),
        )

    def _width(self, name: str) -> int:
        return int(self._inputs[name][1]) if name in self._inputs else 0

    def __call__(self, items: NewItems) -> dict[str, NDArray[Any]]:
        """Return the rows of items by the names of `Published`: `item_row`, `item_identity` and `item_vector`."""
        author, category, categories = (
            np.where((codes >= 0) & (codes < size), codes, 0)  # one that the run does not know is unknown
            for codes, size in zip((items.author, items.category, items.categories), self._sizes, strict=True)
        )
        inputs = {
            "author": author,
            "category": category,
            "content": items.content,
            "categories": categories,
            "floats": items.floats,
            "statistics": self.statistics_of(items),
        }
        found = self._graph.run(list(_OUTPUTS), {name: values for name, values in inputs.items() if name in self._inputs})
        return dict(zip(_OUTPUTS, found, strict=True))

    def statistics_of(self, items: NewItems) -> NDArray[np.float32]:
        """Return the statistics of items [n, S] that nobody has seen: those of author and category, duration, and age 0."""
        statistics, b = np.zeros((len(items.author), self._statistics.shape[1]), np.float32), self._block
        for group, (codes, of) in enumerate(((items.author, self._of_author), (items.category, self._of_category)), 1):
            at = np.array([of.get(code, 0) for code in codes.tolist()], np.int64)
            block = slice(group * b, (group + 1) * b)
            statistics[:, block] = np.where((at > 0)[:, None], self._statistics[at, block], 0)
        statistics[:, 3 * b] = np.log1p(np.maximum(items.duration_ms, 0) / 1000) - 3
        statistics[:, 3 * b + 2] = items.upload_ms == AGE_UNKNOWN
        return statistics


def _first_of(codes: NDArray[np.integer[Any]]) -> dict[int, int]:
    """Return a position of each code but 0."""
    unique, first = np.unique(codes, return_index=True)
    return {code: at for code, at in zip(unique.tolist(), first.tolist(), strict=True) if code}


def author_codes(published: Published, record: PublishedRecord) -> dict[int, int]:
    """Return the codes of authors by their ids."""
    authors, first = np.unique(np.asarray(published.item_author), return_index=True)
    codes = np.asarray(published.item_category)[first, record.category_names.index("author")]
    return dict(zip(authors.tolist(), codes.tolist(), strict=True))


def _columns(rows: Sequence[Sequence[Any]], width: int, dtype: type[np.generic], fill: float = 0) -> NDArray[Any]:
    """Return rows [n, width] of which some are shorter."""
    out = np.full((len(rows), width), fill, dtype)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values[:width]
    return out
