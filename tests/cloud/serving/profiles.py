"""The profile of a small run's inputs, from pages that are made in this process. What it counts is computed anew here."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pocketrank.cloud.pages.maker import PageObserver
from pocketrank.cloud.pipeline.config import PageConfig, PipelineConfig
from pocketrank.cloud.pipeline.stage import Query
from pocketrank.cloud.published.profile import Profile, ProfiledFeature
from pocketrank.device.codec import read_page
from pocketrank.device.contract import Page, PageRequest
from tests.cloud.serving.live import request
from tests.cloud.serving.pages import pages

__all__ = ["REQUESTS", "Made", "SeenInputs", "made_pages"]

REQUESTS = [
    request(n % 10, 20, request_id=str(n), scene=n % 4, now_ms=1_700_000_000_000 + n % 12 * 3_600_000, split_version=None)
    for n in range(60)
]
"""Of eight known users and two unknown ones, in two known scenes and two unknown ones, at twelve hours."""


Made = list[tuple[Query, Page]]


class SeenInputs:
    """The inputs of pages: columns by name."""

    def __init__(self, made: Made) -> None:
        self.pages = 0
        self.of_page, self.of_candidate = defaultdict[str, list[Any]](list), defaultdict[str, list[Any]](list)
        for query, page in made:
            self._add(query, page)

    def _add(self, query: Query, page: Page) -> None:
        self.pages += 1
        view, sent = read_page(page), page.candidates
        for name, values in zip(sent.floats.names, view.floats.T, strict=True):
            self.of_candidate[name] += values.tolist()
        for name, codes in zip(sent.categories.names, view.categories.T, strict=True):
            self.of_candidate[name] += codes.tolist()
        self.of_candidate["item.known"] += [1.0] * len(view.item_id)
        self.of_page["user.known"].append(1.0 if 1 <= query.request.user_id <= 8 else np.nan)
        self.of_page["history.length"].append(float(len(query.history.item)))
        for n, name in enumerate(("long_view", "like", "watch_log", "engaged", "logged")):
            past = query.history.feedback[:, n]
            self.of_page[f"history.{name}"].append(float(past.sum() / np.float32(len(past))) if len(past) else np.nan)
        self.of_page["request.scene"].append(query.request.scene + 1 if query.request.scene < 2 else 0)
        self.of_page["request.hour"].append(query.request.now_ms // 3_600_000 % 24 + 1)

    def profile(self) -> Profile:
        features = []
        for of, columns in (("page", self.of_page), ("candidate", self.of_candidate)):
            features += [ProfiledFeature.fit(name, of, np.array(values)) for name, values in columns.items()]  # type: ignore[arg-type]
        return Profile(pages=self.pages, features=tuple(features))


def made_pages(run: Path, requests: Sequence[PageRequest] = REQUESTS, page: PageConfig | None = None) -> Made:
    """Return the pages that `requests` ask for, and what they were made from."""
    made = _Keeps()
    with pages(run, run / "pages.db", PipelineConfig(page=page or PageConfig()), observer=made) as make:
        for one in requests:
            make(one)
    return made.pages


class _Keeps(PageObserver):
    def __init__(self) -> None:
        self.pages: Made = []

    def made(self, query: Query, page: Page) -> None:
        self.pages.append((query, page))
