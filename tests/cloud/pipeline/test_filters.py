"""What the filters let through: one rule for items that an index finds and for those that come in a fixed order."""

from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any

import msgspec
import numpy as np
import pytest

from pocketrank.cloud.pipeline.filters import AllowedOrder, Filters, FiltersConfig
from pocketrank.cloud.published.catalogue import Catalogue
from pocketrank.cloud.vectors.exact import ExactIndex
from pocketrank.cloud.vectors.index import AGE_UNKNOWN, NONE
from tests.cloud.small_published import small_run

_HOUR_MS = 3_600_000


@pytest.fixture(scope="module", params=["category", "other"])
def catalogue(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Each item was uploaded an hour before the one in front of it; the age of every seventh is unknown."""
    run = small_run(tmp_path_factory.mktemp("run"))
    hours = np.arange(len(run.published.item_id))
    uploads = np.where(hours % 7 == 0, AGE_UNKNOWN, int(time() * 1000) - hours * _HOUR_MS)
    record = msgspec.structs.replace(run.record, category_names=(request.param, "author"))
    return Catalogue(replace(run.published, item_upload_ms=uploads), record)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"categories": ()},
        {"categories": (0, 1, 2)},
        {"categories_not": (1, 2)},
        {"authors": (101, 102, 104)},
        {"authors_not": (101,), "categories_not": (3,)},
        {"age_max_days": 1.5},
        {"age_max_days": 1.5, "categories": (0, 1, 2, 3)},
    ],
)
def test_popular_items_and_an_index_pass_one_rule(catalogue: Catalogue, config: dict[str, Any]) -> None:
    filters, items = Filters(FiltersConfig(**config), catalogue, Path()), np.arange(1, len(catalogue))
    index = ExactIndex()
    index.upsert(items, np.ones((len(items), 2)), catalogue.attributes.take(items))
    found = index.search(np.ones(2, np.float32), len(items), where=filters.where).ids
    popular = AllowedOrder(filters, lambda: catalogue.by_popularity)(NONE, len(items))
    assert sorted(found) == sorted(popular) == np.flatnonzero(filters.allowed).tolist()


def test_an_item_of_unknown_age_does_not_pass_a_filter_by_age(catalogue: Catalogue) -> None:
    filters = Filters(FiltersConfig(age_max_days=1.0), catalogue, Path())
    ages = catalogue.upload_ms[filters.allowed]
    assert len(ages) in range(18, 23), "of a day's 24, those whose age is known"
    assert AGE_UNKNOWN not in ages
