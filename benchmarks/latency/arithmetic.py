"""How much arithmetic a model is: the floating-point operations of its matrix products, from the exported graph.

A product of [m, k] and [k, n] is 2·m·n·k operations, times the batch. Everything else (softmax, logarithms, ReLU, copies)
counts as free, so the limit that follows from this is one that no implementation reaches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.errors import BenchmarkError
from pocketrank.cloud.models.reranker import UpperHalf

__all__ = ["onnx_flop", "torch_flop"]

_PRODUCTS = ("MatMul", "Gemm")
_UNCOUNTED = ("Attention", "Conv", "ConvTranspose", "Einsum", "GRU", "LSTM", "MatMulInteger", "QLinearMatMul", "RNN")
_GEMM_TRANSPOSES_A = "transA"


def onnx_flop(path: Path, inputs: Mapping[str, NDArray[Any]]) -> int:
    """Operations of all MatMul and Gemm nodes of the graph at `path` for `inputs`, which are at least its own.

    The shapes are those of a real run in which the operands and results of every product are outputs too: nothing is inferred.
    Raises `BenchmarkError` for a graph with products of a kind that is not counted here.
    """
    model = onnx.load(path)
    if unknown := sorted({node.op_type for node in model.graph.node if node.op_type in _UNCOUNTED}):
        raise BenchmarkError(path.name, f"all products in {' and '.join(_PRODUCTS)} nodes", ", ".join(unknown))
    products = [node for node in model.graph.node if node.op_type in _PRODUCTS]
    wanted = {name for node in products for name in (node.input[0], node.output[0])}
    for name in sorted(wanted - {output.name for output in model.graph.output}):
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    # Fused nodes would no longer be the ones that are counted.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    taken = {value.name: inputs[value.name] for value in session.get_inputs()}
    values = dict(zip(names, session.run(names, taken), strict=True))
    total = 0
    for node in products:
        transposed = any(a.name == _GEMM_TRANSPOSES_A and a.i for a in node.attribute)
        inner = values[node.input[0]].shape[-2 if transposed else -1]
        total += 2 * math.prod(values[node.output[0]].shape) * inner
    return total


def torch_flop(model: UpperHalf, inputs: Mapping[str, torch.Tensor]) -> int:
    """The same for torch, by its own counter: what tells whether a model and a graph do the same work."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(**inputs)
    return int(counter.get_total_flops())
