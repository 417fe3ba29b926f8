import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pocketrank.device.blocks import MAX_ELEMENTS, from_block, shorten, to_block
from pocketrank.device.contract import Block, BlockError, Dtype

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "blocks.json").read_text())
SHAPES = npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: f"{case['dtype']}-{case['shape']}")
def test_committed_blocks_hold_their_values(case: dict[str, Any]) -> None:
    data, shape = bytes.fromhex(case["hex"]), tuple(case["shape"])
    array = from_block(Block(dtype=case["dtype"], shape=shape, data=data))
    expected = [float("nan") if v is None else float(v) if isinstance(v, str) else v for v in case["values"]]
    assert array.shape == shape
    np.testing.assert_array_equal(array.ravel(), np.array(expected, case["dtype"]))
    assert to_block(array, case["dtype"]).data == data


@given(st.sampled_from(["f2", "f4", "i4", "i8", "u1"]).flatmap(lambda d: npst.arrays(np.dtype("<" + d), SHAPES)))
def test_any_array_survives(array: np.ndarray[Any, Any]) -> None:
    dtype: Any = array.dtype.str[1:]
    back = from_block(to_block(array, dtype), dtype=dtype, ndim=array.ndim)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_bytes_are_viewed_not_copied() -> None:
    block = to_block(np.arange(6.0).reshape(2, 3), "f4")
    array = from_block(block)
    assert isinstance(block.data, bytes)
    assert np.shares_memory(array, np.frombuffer(block.data, np.float32))
    assert not array.flags.writeable


def test_a_transposed_array_is_written_row_major() -> None:
    array = np.arange(6).reshape(2, 3).T
    np.testing.assert_array_equal(from_block(to_block(array, "i4")), array)


def test_big_endian_arrays_are_written_little_endian() -> None:
    assert to_block(np.array([1], ">i4"), "i4").data == b"\x01\0\0\0"


def test_halves_round_to_nearest_and_overflow_to_infinity() -> None:
    array = from_block(to_block(np.array([1 / 3, 1e6, -1e6]), "f2"))
    assert array.tolist() == [float(np.float16(1 / 3)), float("inf"), float("-inf")]


@pytest.mark.parametrize(
    ("array", "dtype"),
    [(np.array([2**31]), "i4"), (np.array([-1]), "u1"), (np.array([1.0]), "i8"), (np.array([2**63], np.uint64), "i8")],
)
def test_what_an_integer_block_cannot_hold_is_refused(array: np.ndarray[Any, Any], dtype: Dtype) -> None:
    with pytest.raises(BlockError, match="integers"):
        to_block(array, dtype)


@pytest.mark.parametrize(
    ("block", "path"),
    [
        (Block(dtype="f4", shape=(2,), data=bytes(7)), "$.x.data"),
        (Block(dtype="f4", shape=(2,), data=bytes(9)), "$.x.data"),
        (Block(dtype="f4", shape=(2,), data=[1.0]), "$.x.data"),
        (Block(dtype="f4", shape=(1,), data=[10**400]), "$.x.data"),
        (Block(dtype="i4", shape=(1,), data=[2**31]), "$.x.data[0]"),
        (Block(dtype="i4", shape=(2,), data=[1, None]), "$.x.data[1]"),
        (Block(dtype="u1", shape=(1,), data=[0.5]), "$.x.data[0]"),
        (Block(dtype="u1", shape=(-1, -1), data=b"\0"), "$.x.shape"),
        (Block(dtype="u1", shape=(MAX_ELEMENTS + 1,), data=b""), "$.x.shape"),
        (Block(dtype="u1", shape=(1 << 13, 1 << 13), data=b""), "$.x.shape"),
        (Block(dtype="u1", shape=(0, 1 << 62), data=b""), "$.x.shape"),
        (Block(dtype="u1", shape=(1,) * 40, data=b"\0"), "$.x.shape"),
    ],
)
def test_blocks_that_disagree_with_themselves_name_the_path(block: Block, path: str) -> None:
    with pytest.raises(BlockError) as caught:
        from_block(block, "$.x")
    assert caught.value.path == path


def test_required_dtype_and_dimensions() -> None:
    block = to_block(np.zeros((2, 2)), "f4")
    with pytest.raises(BlockError, match=r"Expected `f2`, got `f4` - at `\$\.v\.dtype`"):
        from_block(block, "$.v", dtype="f2")
    with pytest.raises(BlockError, match=r"Expected 1 dimensions, got 2 - at `\$\.v\.shape`"):
        from_block(block, "$.v", ndim=1)


def test_lists_read_like_bytes() -> None:
    block = Block(dtype="f4", shape=(1, 3), data=[1, None, 2.5])
    np.testing.assert_array_equal(from_block(block), np.array([[1, np.nan, 2.5]], np.float32))


@given(st.one_of(st.integers(), st.text(), st.none(), st.lists(st.integers())))
def test_values_in_messages_stay_short(value: object) -> None:
    assert len(shorten(value)) <= 60


def test_integers_of_a_million_digits_do_not_reach_a_message() -> None:
    assert shorten(1 << 4_000_000) == "an integer of 4000001 bits"
