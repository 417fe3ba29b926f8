"""To ONNX, opset 18, with free candidate and event counts.

Opset 18 because every runtime in the field reads it and its graphs need no fused attention, which onnxruntime refuses with a
broadcast mask at opset 23. fp16 is weights only, cast back when a model is loaded: the file is half as large and as fast as
fp32, where fp16 arithmetic took onnxruntime twice as long on a CPU and seconds since an event overflow it. int8 is
onnxruntime's dynamic quantisation, weights per channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from device.contract import Precision
from export.errors import ConversionError
from export.graphs import OUTPUT, Graph

__all__ = ["OPSET", "convert"]

OPSET = 18
"""Of every exported graph."""
WEIGHTS_MIN = 256
"""Tensors with fewer values stay in fp32 in the fp16 variant: they weigh nothing."""


def convert(graph: Graph, targets: Mapping[Precision, Path]) -> None:
    """Write `graph` to each path of `targets` in its precision. Raises `ConversionError`."""
    model = _float_model(graph)
    for precision, path in targets.items():
        try:
            if precision == "fp32":
                onnx.save(model, path)
            elif precision == "fp16":
                onnx.save(_half(model), path)
            else:
                _quantise(model, path)
        except Exception as error:  # converters raise many kinds
            raise ConversionError(f"{graph.form} onnx {precision}", "a model", f"{type(error).__name__} {error}") from error


def _float_model(graph: Graph) -> onnx.ModelProto:
    program = graph.traced()
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.names),
            output_names=[OUTPUT],
            external_data=False,
            verbose=False,
        )
    except Exception as error:
        raise ConversionError(f"{graph.form} onnx", "a model", f"{type(error).__name__} {error}") from error
    if exported is None:
        raise ConversionError(f"{graph.form} onnx", "a model", "none")
    model: onnx.ModelProto = exported.model_proto
    # Names of source lines and shapes of everything between: a tenth of the file, nothing that a runtime reads.
    del model.graph.value_info[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for entry in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del entry.metadata_props[:]
        entry.doc_string = ""
    onnx.checker.check_model(model)
    return model


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    half = onnx.ModelProto()
    half.CopyFrom(model)
    casts = []
    for tensor in half.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) >= WEIGHTS_MIN:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}.half"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *half.graph.node]
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    onnx.checker.check_model(half)
    return half


def _quantise(model: onnx.ModelProto, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(model, path, per_channel=True, weight_type=QuantType.QInt8)
