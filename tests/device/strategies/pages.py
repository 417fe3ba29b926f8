"""Pages with named attributes for the tests of strategies."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.device.codec import to_block
from pocketrank.device.contract import Columns, Page
from pocketrank.device.strategies import Slate
from tests.device.worlds import make_page


def page_of(
    items: Sequence[int],
    categories: Mapping[str, Sequence[int]] | None = None,
    floats: Mapping[str, Sequence[float]] | None = None,
    vectors: NDArray[Any] | None = None,
    split: str = "split-1",
) -> Page:
    """A page of `items` with just these columns."""

    def columns(of: Mapping[str, Sequence[float]] | None, dtype: Any) -> Columns:
        table = np.array(list((of or {}).values()), "f8").reshape(len(of or {}), len(items)).T
        return Columns(names=tuple(of or {}), values=to_block(table.astype("i8" if dtype == "i4" else "f8"), dtype))

    page = make_page(list(items), split=None)
    vector = None if vectors is None else to_block(vectors, "f2")
    candidates = msgspec.structs.replace(
        page.candidates, categories=columns(categories, "i4"), floats=columns(floats, "f4"), vector=vector
    )
    return msgspec.structs.replace(page, candidates=candidates, split_version=None if vectors is None else split)


def cloud_order(count: int) -> NDArray[np.intp]:
    return np.arange(count)


def show_all(slate: Slate, items: Sequence[int], most: int = 1_000_000, scores: NDArray[np.float64] | None = None) -> list[int]:
    """Show what is held in cloud order, as the strategies arrange it."""
    left, shown = list(items), []
    while len(shown) < most and (index := slate.first(cloud_order(len(left)), scores)) is not None:
        slate.show(index)
        shown.append(left.pop(index))
        scores = None if scores is None else np.delete(scores, index)
    return shown
