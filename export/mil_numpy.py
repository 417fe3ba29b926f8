"""Evaluation of a saved Core ML program in numpy, operation by operation.

Core ML runs on Apple's systems only. Elsewhere the next best check of a conversion is to read program and weights of the
.mlpackage back from disk and to compute each operation as it is documented (coremltools, "MIL Ops"). That finds a wrong weight,
axis, mask or rewrite. It does not test Apple's kernels, their rounding or their speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.export.errors import ConversionError, UnsupportedError
from pocketrank.export.graphs import OUTPUT

__all__ = ["OPERATIONS", "MilProgram"]

Array = NDArray[Any]
Operation = Callable[..., Any]


def _concat(values: list[Array], axis: int, interleave: bool = False) -> Array:
    if interleave:
        raise UnsupportedError("operation concat", "interleave = false", "true")
    return np.concatenate([np.atleast_1d(value) for value in values], int(axis))  # scalars are concatenated to a list


def _split(x: Array, axis: int, split_sizes: Array | None = None, num_splits: int | None = None) -> list[Array]:
    if split_sizes is None:
        return np.split(x, int(num_splits or 1), int(axis))
    return np.split(x, np.cumsum(split_sizes)[:-1], int(axis))


def _slice(
    x: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    index: list[slice | int] = []
    for i in range(x.ndim):
        if squeeze_mask is not None and squeeze_mask[i]:
            index.append(int(begin[i]))
            continue
        first = None if begin_mask is not None and begin_mask[i] else int(begin[i])
        last = None if end_mask is not None and end_mask[i] else int(end[i])
        index.append(slice(first, last, 1 if stride is None else int(stride[i])))
    return x[tuple(index)]


def _gather(x: Array, indices: Array, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Array:
    if batch_dims:
        raise UnsupportedError("operation gather", "batch_dims = 0", str(batch_dims))
    return np.take(x, indices, int(axis))


def _pad(x: Array, pad: Array, mode: str = "constant", constant_val: float = 0.0) -> Array:
    if mode != "constant":
        raise UnsupportedError("operation pad", "mode = constant", mode)
    widths = np.asarray(pad).reshape(-1, 2)  # pads apply to the last axes
    return np.pad(x, [(0, 0)] * (x.ndim - len(widths)) + [(int(a), int(b)) for a, b in widths], constant_values=constant_val)


def _matmul(x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    return (np.swapaxes(x, -1, -2) if transpose_x else x) @ (np.swapaxes(y, -1, -2) if transpose_y else y)


def _linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    y = x @ weight.T
    return y if bias is None else y + bias


def _softmax(x: Array, axis: int = -1) -> Array:
    e: Array = np.exp(x - x.max(int(axis), keepdims=True))
    total: Array = e.sum(int(axis), keepdims=True)
    return e / total


def _sigmoid(x: Array) -> Array:
    # The exponential of -|x| cannot overflow.
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def _reshape(x: Array, shape: Array) -> Array:
    kept = [x.shape[i] if size == 0 else int(size) for i, size in enumerate(shape)]  # 0 keeps an axis
    return x.reshape(kept)


def _expand_dims(x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(int(a) for a in axes))


def _squeeze(x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, None if axes is None else tuple(int(a) for a in axes))


def _cast(x: Array, dtype: str) -> Array:
    kinds = {"fp16": "f2", "fp32": "f4", "bool": "?"}
    return x.astype(kinds.get(dtype, dtype))  # the integers are called as in numpy


def _dequantise(quantized_data: Array, scale: Array, axis: int = 0, zero_point: Array | np.int8 | None = None) -> Array:
    zero_point = np.zeros((), scale.dtype) if zero_point is None else zero_point
    if np.ndim(scale):
        shape = [1] * quantized_data.ndim
        shape[int(axis)] = -1
        scale = scale.reshape(shape)
        zero_point = np.reshape(zero_point, shape) if np.ndim(zero_point) else zero_point
    centred: Array = quantized_data.astype(scale.dtype) - np.asarray(zero_point, scale.dtype)
    return centred * scale


OPERATIONS: dict[str, Operation] = {
    "add": lambda x, y: x + y,
    "cast": _cast,
    "clip": lambda x, alpha, beta: np.clip(x, alpha, beta),
    "concat": _concat,
    "constexpr_affine_dequantize": _dequantise,
    "expand_dims": _expand_dims,
    "gather": _gather,
    "greater_equal": lambda x, y: x >= y,
    "identity": lambda x: x,
    "linear": _linear,
    "log": lambda x, epsilon=1e-45: np.log(x + np.asarray(epsilon, x.dtype)),
    "matmul": _matmul,
    "maximum": lambda x, y: np.maximum(x, y),
    "minimum": lambda x, y: np.minimum(x, y),
    "mul": lambda x, y: x * y,
    "pad": _pad,
    "real_div": lambda x, y: x / y,
    "relu": lambda x: np.maximum(x, 0),
    "reshape": _reshape,
    "select": lambda cond, a, b: np.where(cond, a, b),
    "shape": lambda x: np.array(x.shape, np.int32),
    "sigmoid": _sigmoid,
    "slice_by_index": _slice,
    "softmax": _softmax,
    "split": _split,
    "squeeze": _squeeze,
    "sub": lambda x, y: x - y,
    "transpose": lambda x, perm: np.transpose(x, perm),
}
"""Function of each operation by its name, with its documented arguments."""


class MilProgram:
    """Main function of the program in a .mlpackage folder."""

    def __init__(self, path: Path) -> None:
        """Read program and weights. Raises `UnsupportedError` for an unknown operation, `ConversionError` for a bad file."""
        import coremltools
        from coremltools.converters.mil.frontend.milproto.load import load

        try:
            model = coremltools.models.MLModel(str(path), skip_model_load=True)
            spec = model.get_spec()
            program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=model.weights_dir)
        except Exception as error:  # protobuf and coremltools raise many kinds
            raise ConversionError(str(path), "a Core ML program", f"{type(error).__name__} {error}") from error
        function = program.functions["main"]
        self.path, self.input_names = path, tuple(function.inputs)
        self._operations = list(function.operations)
        for op in self._operations:
            if op.op_type != "const" and op.op_type not in OPERATIONS:
                raise UnsupportedError(f"{path}, `{op.name}`", "a known operation", f"`{op.op_type}`")

    def run(self, inputs: Mapping[str, Array]) -> NDArray[np.float32]:
        """Compute the scores f32 [1, N, tasks] of the contract's inputs. Raises `ConversionError` when an operation fails."""
        values: dict[str, Any] = {name: inputs[name] for name in self.input_names}
        for op in self._operations:
            if op.op_type == "const":
                values[op.outputs[0].name] = op.outputs[0].val
                continue
            arguments = {
                name: [values[v.name] for v in given] if isinstance(given, list | tuple) else values[given.name]
                for name, given in op.inputs.items()
                if given is not None
            }
            try:
                answer = OPERATIONS[op.op_type](**arguments)
            except (TypeError, ValueError, IndexError) as error:
                raise ConversionError(f"{self.path}, `{op.name}`", f"operation `{op.op_type}`", str(error)) from error
            for output, value in zip(op.outputs, answer if isinstance(answer, list) else [answer], strict=True):
                values[output.name] = value
        return np.asarray(values[OUTPUT], np.float32)
