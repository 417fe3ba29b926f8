"""The same model in ExecuTorch with XNNPACK: a peer, converted here and shipped in no bundle."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.errors import BenchmarkError
from pocketrank.cloud.models.reranker import UpperHalf

__all__ = ["convert_executorch", "open_executorch"]

Call = Callable[[], Tensor]


def convert_executorch(model: UpperHalf, tensors: Mapping[str, Tensor]) -> bytes | None:
    """A program of the whole model for the shapes of `tensors`. None where the package is not installed.

    Raises `BenchmarkError` when it cannot be converted.
    """
    if find_spec("executorch") is None:
        return None
    try:
        with _quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
            from executorch.exir.passes.constant_prop_pass import constant_prop_pass

            # Derived weights are computed once here too, as the other converters do.
            program = constant_prop_pass(torch.export.export(model, _in_place(model, tensors)))
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return bytes(lowered.to_executorch().buffer)
    except Exception as error:  # converters raise many kinds
        raise BenchmarkError("executorch", "a program", f"{type(error).__name__} {error}") from error


def open_executorch(program: bytes, model: UpperHalf, tensors: Mapping[str, Tensor]) -> Call:
    """A run of `program`, which `model` was converted to, on `tensors`, with one thread."""
    with _quiet():
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        from executorch.runtime import Runtime

        _unsafe_reset_threadpool(1)  # for good; there is no other way to say it from Python
        opened = Runtime.get().load_program(program)
        method = opened.load_method("forward")
    inputs = _in_place(model, tensors)

    def run() -> Tensor:
        # `opened` has to live as long as its method
        return method.execute(inputs)[0] if opened else inputs[0]

    return run


def _in_place(model: UpperHalf, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Arguments by place, with plain strides: numpy gives an axis of 1 a stride of 0, which ExecuTorch refuses."""
    names = [name for name in inspect.signature(model.forward).parameters if name in tensors]
    return tuple(torch.empty(tensors[name].shape, dtype=tensors[name].dtype).copy_(tensors[name]) for name in names)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Python and C++ alike write to standard error."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
