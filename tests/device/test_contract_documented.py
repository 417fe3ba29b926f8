"""The page that specifies the contract names every message and every field, so that a server in any language can send them."""

import re
from pathlib import Path

import msgspec
import pytest

from pocketrank.cloud.serving.http.wire import ErrorBody
from pocketrank.device import contract

PAGE = (Path(__file__).parents[2] / "docs" / "contract.md").read_text()
BASES = {"Wire", "Versioned", "Addressed"}
STRUCTS = [
    ErrorBody,
    *(
        found
        for name, found in vars(contract).items()
        if isinstance(found, type) and issubclass(found, msgspec.Struct) and name not in BASES
    ),
]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_message_and_field_is_in_the_page(struct: type[msgspec.Struct]) -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert struct.__name__ in named
    assert not set(struct.__struct_fields__) - named
