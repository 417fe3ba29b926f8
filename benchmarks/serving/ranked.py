"""What a peer does for a page: look up, rank, fuse, take the best, gather their columns.

Less than the product does: the candidates are given instead of retrieved, nobody's vector is computed, nothing is excluded, no
category is held back, no feedback is taken in. What is left is the same model on as many candidates and a page of the same
content, so that a peer's advantage in work is never the product's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.model import Model
from device.codec import to_block
from device.contract import Candidates, Columns, Page, PageRequest

__all__ = ["columns_of", "page_of"]

_TTL_MS = 600_000


def page_of(model: Model, request: PageRequest) -> Page:
    """The page as a device takes it, for peers that answer MessagePack."""
    items, pxtr = _best(model, request.user_id, request.size)
    p, record = model.published, model.record
    floats = np.concatenate([pxtr, p.item_float[items]], 1)
    return Page(
        page_id=request.request_id,
        request_id=request.request_id,
        created_ms=request.now_ms,
        ttl_ms=_TTL_MS,
        candidates=Candidates(
            item_id=to_block(p.item_id[items], "i8"),
            floats=Columns(
                names=(*(f"pxtr_{task}" for task in record.tasks), *record.float_names), values=to_block(floats, "f4")
            ),
            categories=Columns(names=record.category_names, values=to_block(p.item_category[items], "i4")),
            vector=to_block(p.item_vector[items], "f2"),
        ),
        user_vector=to_block(p.item_vector[items[0]], "f2"),
        split_version=record.split_version,
    )


def columns_of(model: Model, request_id: str, user_id: int, now_ms: int, size: int) -> dict[str, Any]:
    """The same content as plain lists, for peers that answer JSON."""
    items, pxtr = _best(model, user_id, size)
    p, record = model.published, model.record
    return {
        "page_id": request_id,
        "request_id": request_id,
        "created_ms": now_ms,
        "ttl_ms": _TTL_MS,
        "item_id": p.item_id[items].tolist(),
        "float_names": [*(f"pxtr_{task}" for task in record.tasks), *record.float_names],
        "floats": np.concatenate([pxtr, p.item_float[items]], 1).tolist(),
        "category_names": list(record.category_names),
        "categories": p.item_category[items].tolist(),
        "vector": p.item_vector[items].tolist(),
        "compute_price": 1.0,
        "user_vector": p.item_vector[items[0]].tolist(),
        "split_version": record.split_version,
    }


def _best(model: Model, user_id: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best candidates by the sum of their probabilities, best first, with these."""
    items, pxtr = model(model.user(user_id))
    best = np.argsort(-pxtr.sum(1), kind="stable")[:size]
    return items[best], pxtr[best]
