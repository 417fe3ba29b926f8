"""Published items as columns by position."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pocketrank.cloud.published.catalogue import Catalogue
from pocketrank.cloud.vectors.index import AGE_UNKNOWN
from tests.cloud.small_published import UPLOAD_MS, SmallRun, small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("run"), items=6)


def test_the_newest_come_first_and_those_of_unknown_age_not_at_all(run: SmallRun) -> None:
    uploads = np.array([AGE_UNKNOWN, UPLOAD_MS, AGE_UNKNOWN, UPLOAD_MS + 2, UPLOAD_MS + 2, AGE_UNKNOWN + 1, UPLOAD_MS + 1])
    catalogue = Catalogue(replace(run.published, item_upload_ms=uploads), run.record)
    assert catalogue.by_freshness.tolist() == [3, 4, 6, 1, 5], "items of one age keep their order"


def test_the_most_popular_come_first_and_row_0_not_at_all(run: SmallRun) -> None:
    popularity = np.array([9.0, 0.1, 0.3, 0.1, 0.0, 0.9, 0.3], np.float32)
    catalogue = Catalogue(replace(run.published, item_popularity=popularity), run.record)
    assert catalogue.by_popularity.tolist() == [5, 2, 6, 1, 3, 4]


def test_columns_are_found_by_name(run: SmallRun) -> None:
    catalogue = Catalogue(run.published, run.record)
    assert len(catalogue) == 7
    for i, name in enumerate(("category", "author")):
        np.testing.assert_array_equal(catalogue.category(name), run.published.item_category[:, i])
    assert catalogue.category("topic") is None


def test_a_filter_sees_authors_uploads_and_categories_where_the_run_has_them(run: SmallRun, tmp_path: Path) -> None:
    author, category, created_ms = Catalogue(run.published, run.record).attributes
    np.testing.assert_array_equal(author, run.published.item_author)
    np.testing.assert_array_equal(category, run.published.item_category[:, 0])
    np.testing.assert_array_equal(created_ms, run.published.item_upload_ms)
    record = msgspec.structs.replace(run.record, category_names=("topic", "author"))
    assert not Catalogue(run.published, record).attributes.category.any()
