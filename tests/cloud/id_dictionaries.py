"""Dictionaries for tests, made by the rules of `pocketrank.device.contract.ids`, and small runs whose ids are texts."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.published.id_texts import PublishedIds
from pocketrank.device.contract import CODE_BITS, code_choices
from tests.cloud.small_published import SmallRun, small_run


def coded(texts: Iterable[str], bits: int = CODE_BITS) -> dict[str, int]:
    """Return the texts with their codes. With few `bits` some collide."""
    codes: dict[str, int] = {}
    for text in texts:
        codes[text] = next(code for code in code_choices(text, bits) if code not in codes.values())
    return codes


def small_run_with_texts(folder: Path) -> SmallRun:
    """A small run with the items `item-0` to `item-59` and the users `user-0` to `user-7`."""
    run = small_run(folder)
    users, items = (coded(f"{name}-{number}" for number in range(count)) for name, count in (("user", 8), ("item", 60)))
    dictionaries = {kind: (list(codes.values()), list(codes)) for kind, codes in (("user_id", users), ("item_id", items))}
    PublishedIds.save(folder / "published", dictionaries)
    named = replace(run, published=replace(run.published, user_id=_column(users), item_id=_column(items)))
    named.save()
    return named


def _column(codes: dict[str, int]) -> NDArray[np.int64]:
    return np.array([np.iinfo(np.int64).min, *sorted(codes.values())])
