"""Codes of a team's own ids."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.device.contract import ContractError, as_code, code_choices, id_code


def test_codes_are_those_that_every_other_program_computes() -> None:
    # By DuckDB 1.4: SELECT CAST(md5_number_lower('…') & 9223372036854775807::UBIGINT AS BIGINT)
    assert id_code("héllo") == 5772411303335779161
    assert id_code("a") == 7000413967451013937
    assert id_code("u-1", bits=8) == id_code("u-1") & 255


def test_a_text_whose_code_is_taken_gets_another() -> None:
    assert list(islice(code_choices("a"), 3)) == [id_code("a"), id_code("a\x001"), id_code("a\x002")]


@given(st.text(min_size=1, max_size=256))
def test_a_code_is_a_positive_integer_of_64_bits(text: str) -> None:
    assert 0 <= as_code(text) == id_code(text) < 2**63


def test_a_whole_number_is_its_own_code() -> None:
    assert as_code(-(2**63)) == -(2**63)
    assert as_code("12") != 12


@pytest.mark.parametrize(("text", "got"), [("", "0 characters"), ("x" * 257, "257 characters"), ("\ud800", "half of")])
def test_texts_that_no_cloud_accepts(text: str, got: str) -> None:
    with pytest.raises(ContractError, match=f"got {got}.* - at `\\$.user_id`"):
        as_code(text, "$.user_id")
