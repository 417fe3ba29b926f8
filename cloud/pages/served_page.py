"""What is kept of a page that was served (`pocketrank.cloud.streams.messages.ServedPage`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.pages.maker import MadePage
from pocketrank.cloud.published.catalogue import Catalogue
from pocketrank.cloud.streams.messages import ServedInputs, ServedPage

__all__ = ["served_page"]

_NO_CHANNEL = 255
_PADDING = np.iinfo(np.int64).min


def served_page(made: MadePage, catalogue: Catalogue, *, run: str, sequence: int, served_ms: int) -> ServedPage:
    """Return the record of a page that was `made` from the parameters `sequence` of the run of this name."""
    page, query, candidates = made
    request, ranked = query.request, candidates.pxtr is not None and "popular" not in query.degraded
    sequence_item = sequence_mask = b""
    if query.moment is not None and query.moment.sequence.size:
        mask = query.moment.sequence_mask
        items = np.where(mask > 0, catalogue.item_id.take(query.moment.sequence), _PADDING)
        sequence_item, sequence_mask = _bytes(items, "<i8"), _bytes(mask, "<f4")
    names = tuple(dict.fromkeys(name for name, _ in query.found))
    channel = np.full(len(candidates), _NO_CHANNEL, np.uint8)
    for name, found in reversed(query.found):  # the first one that found an item has added it
        channel[(candidates.item[:, None] == found).any(1)] = names.index(name)  # faster than `isin` for a page
    return ServedPage(
        page_id=page.page_id,
        session_id=request.session_id,
        served_ms=served_ms,
        experiment=request.experiment,
        run=run,
        sequence=sequence,
        split_version=page.split_version,
        degraded=page.degraded,
        inputs=ServedInputs(
            user_id=request.user_id,
            scene=request.scene,
            hour=query.hour,
            history_item=_bytes(catalogue.item_id.take(query.history.item), "<i8"),
            history_feedback=_bytes(query.history.feedback, "<f4"),
            sequence_item=sequence_item,
            sequence_mask=sequence_mask,
        ),
        item_id=page.candidates.item_id.data if isinstance(page.candidates.item_id.data, bytes) else b"",
        channel=channel.tobytes(),
        channels=names,
        pxtr=_bytes(candidates.pxtr, "<f4") if ranked else b"",
        score=b"" if candidates.score is None or not ranked else _bytes(candidates.score, "<f4"),
        statistics=b"" if candidates.statistics is None else _bytes(candidates.statistics, "<f4"),
        exploring=b"" if candidates.exploring is None else candidates.exploring.tobytes(),
    )


def _bytes(values: NDArray[Any] | None, dtype: str) -> bytes:
    return b"" if values is None else np.asarray(values, dtype).tobytes()
