"""Embeddings of items and users whose categories have several values."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pocketrank.cloud.data.category_columns import shared_sizes
from pocketrank.cloud.data.sample_stream import build_samples
from pocketrank.cloud.data.samples import SampleConfig, Samples
from pocketrank.cloud.models.entities import ItemIdentity, UserAttributes
from tests.cloud.data.logs import columns, small_log

NOON = 1_700_000_000_000
ITEMS = [[1, 2, 3, 4], [2, 3, 4, 2], [1, 4, 2, 3], [2, 0, 0, 0], [2, 4, 0, 0]]
"""Codes of `brand` and of three genres."""
USERS = [[2, 3, 1], [3, 2, 1], [0, 0, 1]]
"""Codes of two hobbies and of `country`."""


@pytest.fixture
def samples() -> Samples:
    log = small_log([NOON], time_zone="UTC", like=[True])
    items = columns(log.items.schema, 5, item_id=range(10, 15), duration_ms=[9000] * 5, categories=ITEMS)
    users = columns(log.users.schema, 3, user_id=[1, 2, 3], categories=USERS)
    log = replace(
        log,
        items=items,
        users=users,
        item_categories=("brand", "genres[0]", "genres[1]", "genres[2]"),
        user_categories=("hobbies[0]", "hobbies[1]", "country"),
    )
    return build_samples(log, SampleConfig(tasks=("like",)))


def test_values_of_an_item_share_a_table_and_are_averaged(samples: Samples) -> None:
    torch.manual_seed(0)
    identity = ItemIdentity(samples, 3, 2)
    assert {name: tuple(value.shape) for name, value in identity.named_parameters()} == {
        "item.weight": (6, 3),
        "author.weight": (1, 2),
        "category.weight": (1, 2),
        "attributes.0.weight": (3, 2),
        "attributes.1.weight": (5, 2),
    }
    assert identity.width == 3 + 2 * 4
    genre = identity.attributes[1].weight
    with torch.no_grad():
        genre[0] = 7.0  # of the unknown alone
        rows = identity(torch.arange(6))
    assert rows.shape == (6, identity.width)
    torch.testing.assert_close(rows[2, -2:], (genre[3] + genre[4] + genre[2]) / 3)
    torch.testing.assert_close(rows[3, -2:], rows[2, -2:])
    torch.testing.assert_close(rows[4, -2:], genre[0])
    torch.testing.assert_close(rows[5, -2:], genre[4])


def test_values_of_a_user_share_a_table_and_are_averaged(samples: Samples) -> None:
    torch.manual_seed(0)
    users = UserAttributes(samples, 2, ids=False)
    assert [tuple(table.weight.shape) for table in users.attributes] == [(4, 2), (2, 2)]
    hobby, country = (table.weight for table in users.attributes)
    with torch.no_grad():
        row = users(torch.tensor([1, 2, 3]))
    torch.testing.assert_close(row[0], (hobby[2] + hobby[3]) / 2 + country[1])
    torch.testing.assert_close(row[1], row[0])
    torch.testing.assert_close(row[2], hobby[0] + country[1])


def test_columns_of_one_category_have_one_size() -> None:
    codes = np.array([[1, 2, 0], [0, 1, 5]])
    assert shared_sizes(("brand", "genres[0]", "genres[1]"), codes) == (2, 6, 6)
    assert shared_sizes(("brand", "genres", "mood"), codes) == (2, 3, 6)
    assert shared_sizes(("brand", "genres[0]", "genres[1]"), codes[:0]) == (1, 1, 1)


def test_users_of_a_log_without_names_have_a_table_for_each_column(samples: Samples) -> None:
    log = small_log([NOON], time_zone="UTC", like=[True])
    unnamed = build_samples(log, SampleConfig(tasks=("like",)))
    assert [tuple(table.weight.shape) for table in UserAttributes(unnamed, 2, ids=False).attributes] == [(3, 2), (6, 2)]
