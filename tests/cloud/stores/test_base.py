import numpy as np
import pytest

from pocketrank.cloud.stores.base import StoreError, StoreInputError, UnknownVersionError, as_ids, as_rows


@pytest.mark.parametrize("ids", [[1, 2], np.array([1, 2], np.int32), np.array([1, 2], np.uint64), range(1, 3)])
def test_whole_numbers_are_ids(ids: object) -> None:
    got = as_ids("here", ids)  # type: ignore[arg-type]
    assert (got.dtype, got.tolist()) == (np.int64, [1, 2])


def test_an_empty_list_has_no_ids() -> None:
    assert as_ids("here", []).dtype == np.int64


@pytest.mark.parametrize("ids", [[1.0], ["1"], [[1]], 1, np.array([2**63], np.uint64), [True]], ids=repr)
def test_invalid_ids_are_rejected(ids: object) -> None:
    with pytest.raises(StoreInputError, match="- at here"):
        as_ids("here", ids)  # type: ignore[arg-type]


def test_text_is_rejected_as_a_vector() -> None:
    with pytest.raises(StoreInputError):
        as_rows("here", [1], [["x"]], 1)


def test_an_error_says_what_and_where() -> None:
    error = UnknownVersionError("memory:", "a version", "'v'")
    assert isinstance(error, StoreError)
    assert str(error) == "Expected a version, got 'v' - at memory:"
