"""The page as a team writes it for its own server: faiss, onnxruntime and numpy, one step after the other.

It is the product's page: the user's vector from the past, the nearest items without those that were seen or excluded, the whole
ranker over them, the best of the sum of all tasks with at most three of a category before the others had theirs, and their
columns and vectors. What a product has beyond that is not here: no feedback is taken in, no version, deadline or filter is
looked at, nothing is counted or logged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.serving.model import CANDIDATES, Model
from pocketrank.cloud.reranking.spread import SpreadConfig
from pocketrank.cloud.time_zones import hour_of, zone_of
from pocketrank.device.codec import to_block
from pocketrank.device.contract import Candidates, Columns, Page, PageRequest

__all__ = ["ByHand"]

faiss: Any = _faiss
_TTL_MS = 600_000
_DAY_MS = 86_400_000
_RECALL, _QUERIES, _DEPTH = 0.98, 64, 600
"""Lists are read until so much of the best so many is found, for so many vectors of items. The product's lists ask for the
same."""
_OF_CATEGORY = SpreadConfig().max_per_category


class ByHand:
    """Pages of the published half in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._model = Model(folder)
        self._published, self.record = self._model.published, self._model.record
        self.zone = zone_of(self.record.time_zone)
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        tower = str(folder / "user_tower.onnx")
        self._tower = ort.InferenceSession(tower, options, providers=["CPUExecutionProvider"])
        self._index = _index(self._published.item_vector[1:].astype(np.float32))
        p = self._published
        self._upload_day = np.where(p.item_upload_ms > np.iinfo(np.int64).min, p.item_upload_ms / _DAY_MS, np.nan)

    def page(self, asked: PageRequest) -> Page:
        """As a device takes it, for peers that answer MessagePack."""
        items, floats, vector = self._best(asked.user_id, asked.exclude, asked.size, asked.now_ms)
        p, record = self._published, self.record
        return Page(
            page_id=asked.request_id,
            request_id=asked.request_id,
            created_ms=asked.now_ms,
            ttl_ms=_TTL_MS,
            candidates=Candidates(
                item_id=to_block(p.item_id[items], "i8"),
                floats=Columns(names=self._names(), values=to_block(floats, "f4")),
                categories=Columns(names=record.category_names, values=to_block(p.item_category[items], "i4")),
                vector=to_block(p.item_vector[items], "f2"),
            ),
            user_vector=to_block(vector, "f2"),
            split_version=record.split_version,
        )

    def columns(self, request_id: str, user_id: int, exclude: Sequence[int], now_ms: int, size: int) -> dict[str, Any]:
        """The same content as plain lists, for peers that answer JSON."""
        items, floats, vector = self._best(user_id, exclude, size, now_ms)
        p, record = self._published, self.record
        return {
            "page_id": request_id,
            "request_id": request_id,
            "created_ms": now_ms,
            "ttl_ms": _TTL_MS,
            "item_id": p.item_id[items].tolist(),
            "float_names": list(self._names()),
            "floats": floats.tolist(),
            "category_names": list(record.category_names),
            "categories": p.item_category[items].tolist(),
            "vector": p.item_vector[items].tolist(),
            "compute_price": 1.0,
            "user_vector": vector.tolist(),
            "split_version": record.split_version,
        }

    def _names(self) -> tuple[str, ...]:
        return (*(f"pxtr_{task}" for task in self.record.tasks), *self.record.float_names, "age")

    def _best(
        self, user_id: int, exclude: Sequence[int], size: int, now_ms: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """Positions [n] of the page's items, their floats [n, F] and the user's vector [D]."""
        p, user = self._published, self._model.user(user_id)
        past = p.history_item[user]
        vector = self._vector(user, past)
        seen = np.concatenate([past, np.searchsorted(p.item_id, np.asarray(exclude, np.int64))])
        _, found = self._index.search(vector[None], CANDIDATES + len(seen))
        items = found[0][found[0] >= 0] + 1  # row 0 of the tables is no item
        items = items[~np.isin(items, seen)][:CANDIDATES]
        hour = hour_of(now_ms, self.zone)
        pxtr = self._model.run(self._model.inputs(user, items, hour))
        best = self._spread(items, np.argsort(-pxtr.sum(1), kind="stable"), size)
        items = items[best]
        age = now_ms / _DAY_MS - self._upload_day[items]
        return items, np.concatenate([pxtr[best], p.item_float[items], age[:, None]], 1, dtype=np.float32), vector

    def _vector(self, user: int, past: NDArray[np.int32]) -> NDArray[np.float32]:
        p, latest = self._published, slice(-self.record.tower_history_max, None)
        inputs = {
            "tower_row": p.tower_row[user][None],
            "history_vector": p.item_vector[past[latest]][None],
            "history_feedback": p.history_feedback[user, latest][None],
            "history_mask": (past[latest] > 0)[None],
        }
        vector: NDArray[np.float32] = self._tower.run(["user_vector"], inputs)[0][0]
        return vector

    def _spread(self, items: NDArray[np.int64], ranked: NDArray[np.int64], size: int) -> list[int]:
        category, chosen = self._published.item_category[items, 0].tolist(), list[int]()
        left = ranked.tolist()
        while left and len(chosen) < size:
            taken, later = Counter[int](), list[int]()
            for i in left:
                if taken[category[i]] < _OF_CATEGORY:
                    taken[category[i]] += 1
                    chosen.append(i)
                    if len(chosen) == size:
                        break
                else:
                    later.append(i)
            left = later
        return chosen


def _index(vectors: NDArray[np.float32]) -> Any:
    """Lists over vectors [I, D], and as many of them read as it takes."""
    items, width = vectors.shape
    lists, rng = round(items**0.5), np.random.default_rng(0)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[rng.choice(items, min(items, 64 * lists), replace=False)])
    index.add(vectors)
    queries = vectors[rng.choice(items, min(items, _QUERIES), replace=False)]
    depth = min(_DEPTH, items)
    exact = faiss.IndexFlatIP(width)
    exact.add(vectors)
    _, expected = exact.search(queries, depth)
    for index.nprobe in range(1, lists + 1):
        _, found = index.search(queries, depth)
        if np.mean([np.isin(e, f).mean() for e, f in zip(expected, found, strict=True)]) >= _RECALL:
            break
    return index
