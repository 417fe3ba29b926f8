"""Each operation against torch, which shares the documented meaning; programs that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.export.errors import ConversionError, UnsupportedError
from pocketrank.export.mil_numpy import OPERATIONS, MilProgram

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)
Y = RNG.normal(size=(2, 3, 4)).astype(np.float32)


def test_products_and_layers_are_torchs() -> None:
    t, w, b = torch.from_numpy(X), RNG.normal(size=(5, 4)).astype("f4"), RNG.normal(size=5).astype("f4")
    linear = torch.nn.functional.linear(t, torch.from_numpy(w), torch.from_numpy(b))
    np.testing.assert_allclose(OPERATIONS["linear"](x=X, weight=w, bias=b), linear, rtol=1e-5, atol=1e-6)
    product = (t @ torch.from_numpy(Y).transpose(1, 2)).numpy()
    np.testing.assert_allclose(OPERATIONS["matmul"](x=X, y=Y, transpose_y=True), product, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(OPERATIONS["softmax"](x=X * 50, axis=-1), torch.softmax(t * 50, -1), atol=1e-6)
    np.testing.assert_allclose(OPERATIONS["sigmoid"](x=X * 99), torch.sigmoid(t * 99), rtol=1e-5)


@given(st.integers(0, 2), st.data())
def test_split_undoes_concat(axis: int, data: st.DataObject) -> None:
    size = X.shape[axis]
    cut = data.draw(st.integers(1, size - 1))
    parts = OPERATIONS["split"](x=X, axis=axis, split_sizes=np.int32([cut, size - cut]))
    assert [part.shape[axis] for part in parts] == [cut, size - cut]
    np.testing.assert_array_equal(OPERATIONS["concat"](values=parts, axis=axis), X)


def test_slices_gathers_and_shapes() -> None:
    sliced = OPERATIONS["slice_by_index"](
        x=X,
        begin=np.int32([0, 1, 2]),
        end=np.int32([0, 0, 3]),
        end_mask=np.array([True, True, False]),
        squeeze_mask=np.array([False, False, True]),
    )
    np.testing.assert_array_equal(sliced, X[:, 1:, 2])
    np.testing.assert_array_equal(OPERATIONS["gather"](x=X, indices=np.int32([[2, 0]]), axis=1), X[:, [[2, 0]]])
    np.testing.assert_array_equal(OPERATIONS["reshape"](x=X, shape=np.int32([0, -1])), X.reshape(2, 12))
    np.testing.assert_array_equal(OPERATIONS["transpose"](x=X, perm=[2, 0, 1]), X.transpose(2, 0, 1))
    np.testing.assert_array_equal(
        OPERATIONS["pad"](x=X, pad=np.int32([1, 0]), constant_val=7.0), np.pad(X, [(0, 0)] * 2 + [(1, 0)], constant_values=7)
    )
    assert OPERATIONS["expand_dims"](x=X, axes=np.int32([0, -1])).shape == (1, 2, 3, 4, 1)
    assert OPERATIONS["squeeze"](x=X[:1], axes=np.int32([0])).shape == (3, 4)
    assert OPERATIONS["cast"](x=X, dtype="fp16").dtype == np.float16


@given(st.sampled_from([0, 1]), st.integers(-3, 3))
def test_quantised_weights_are_scaled_along_their_axis(axis: int, zero: int) -> None:
    data = np.int8([[1, -2, 3], [4, 5, -6]])
    scale = np.float32([0.5, 2.0, 4.0][: data.shape[axis]])
    got = OPERATIONS["constexpr_affine_dequantize"](quantized_data=data, scale=scale, axis=axis, zero_point=np.int8(zero))
    expected = (data.astype("f4") - zero) * (scale[:, None] if axis == 0 else scale)
    np.testing.assert_array_equal(got, expected)


def test_what_is_not_covered_is_named() -> None:
    with pytest.raises(UnsupportedError, match="interleave"):
        OPERATIONS["concat"](values=[X, Y], axis=0, interleave=True)
    with pytest.raises(UnsupportedError, match="reflect"):
        OPERATIONS["pad"](x=X, pad=np.int32([1, 1]), mode="reflect")


def _save(path: Path, body) -> Path:  # type: ignore[no-untyped-def]
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb  # noqa: N813

    program = mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))], opset_version=ct.target.iOS17)(body)
    ct.convert(program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS17, skip_model_load=True).save(str(path))
    return path


def test_an_unknown_operation_is_named_when_the_program_is_opened(tmp_path: Path) -> None:
    from coremltools.converters.mil import Builder as mb  # noqa: N813

    path = _save(tmp_path / "odd.mlpackage", lambda x: mb.erf(x=x, name="scores"))
    with pytest.raises(UnsupportedError, match=r"Expected a known operation, got `erf` - at .*`scores_cast_fp16`"):
        MilProgram(path)


def test_a_saved_program_is_run_from_disk(tmp_path: Path) -> None:
    from coremltools.converters.mil import Builder as mb  # noqa: N813

    path = _save(tmp_path / "square.mlpackage", lambda x: mb.mul(x=x, y=x, name="scores"))
    program = MilProgram(path)
    (name,) = program.input_names
    np.testing.assert_allclose(program.run({name: X[0, :1]}), X[0, :1] ** 2, rtol=2e-3)  # fp16 by default


def test_a_folder_that_is_no_program_is_a_conversion_error(tmp_path: Path) -> None:
    (tmp_path / "empty.mlpackage").mkdir()
    with pytest.raises(ConversionError, match="Expected a Core ML program"):
        MilProgram(tmp_path / "empty.mlpackage")
