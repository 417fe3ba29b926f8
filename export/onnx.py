"""Conversion to ONNX, opset 18: a file for each stage, with free counts of candidates, events, lists and items of a list.

Every runtime in the field reads opset 18, and its graphs need no fused attention, which onnxruntime rejects with a broadcast
mask at opset 23. fp16 applies to the weights only, which are cast back when a model is loaded: the file is half as large and
the model as fast as fp32. With fp16 arithmetic onnxruntime took twice as long on a CPU, and the seconds since an event overflow
it. int8 is onnxruntime's dynamic quantisation with weights per channel. The stage `search` is a `Loop` that ends with the
search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from pocketrank.device.contract import Precision, Stage
from pocketrank.device.runtimes import OUTPUT_NAMES, stage_inputs
from pocketrank.export.cut import Operations
from pocketrank.export.errors import ConversionError
from pocketrank.export.graphs import FIRST, FREE, GOING, LINKS, NEXT, OUTPUT, RAW, Graph, stage_output

__all__ = ["OPSET", "convert"]

OPSET = 18
"""ONNX operator set of every exported graph."""
WEIGHTS_MIN = 256
"""Tensors with fewer values stay in fp32 in the fp16 variant: they hardly add to the file."""
STEP = "step."
"""Prefix of the names in a loop's body, which must differ from those of the graph around it."""

E = TypeVar("E", onnx.NodeProto, onnx.ValueInfoProto)


def convert(graph: Graph, targets: Mapping[Precision, Mapping[Stage, Path]]) -> None:
    """Write the stages of `graph` to the paths of `targets`. Raises `ConversionError`, `UnsupportedError`."""
    stages = _float_model(graph)
    for precision, paths in targets.items():
        try:
            model = stages if precision == "fp32" else _half(stages) if precision == "fp16" else _quantised(stages)
            for stage, path in paths.items():
                onnx.save(_cut(model, graph, stage), path)
        except Exception as error:  # converters raise many kinds
            raise ConversionError(f"{graph.form} onnx {precision}", "a model", f"{type(error).__name__} {error}") from error


def _float_model(graph: Graph) -> onnx.ModelProto:
    """Return one graph with all stages side by side."""
    program, inputs, outputs = graph.traced_stages()
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            external_data=False,
            verbose=False,
        )
    except Exception as error:
        raise ConversionError(f"{graph.form} onnx", "a model", f"{type(error).__name__} {error}") from error
    if exported is None:
        raise ConversionError(f"{graph.form} onnx", "a model", "none")
    model: onnx.ModelProto = exported.model_proto
    # No runtime reads the source lines and the shapes of intermediate values, which are a tenth of the file.
    del model.graph.value_info[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for entry in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del entry.metadata_props[:]
        entry.doc_string = ""
    return model


def _cut(model: onnx.ModelProto, graph: Graph, stage: Stage) -> onnx.ModelProto:
    """Return one stage of `model`, which holds all of them."""
    nodes, values = model.graph.node, {value.name: value for value in (*model.graph.input, *model.graph.output)}
    # Inputs and outputs of the stage, by their names in the contract.
    given, wanted = stage_inputs(graph.form, stage), {stage_output(stage, name): name for name in OUTPUT_NAMES[stage]}
    names = {value: name for name, value in LINKS.items()} | wanted
    operations = Operations([(node.input, node.output) for node in nodes], LINKS)
    if stage == "search":
        # A search is traced as its first state and one further step (`search_graph`), which become the loop here.
        assert graph.modules.search is not None
        state = graph.modules.search.state
        changes = {name: (FIRST + name, NEXT + name) for name in state}
        loop = operations.loop(list(wanted), given, changes, (FIRST + GOING, NEXT + GOING))
        inside = names | {value: STEP + value for value in (*state, *(v for i in loop.body for v in nodes[i].output))}
        body = helper.make_graph(
            [_renamed(nodes[i], inside) for i in loop.body],
            "step",
            [
                helper.make_tensor_value_info(f"{STEP}number", onnx.TensorProto.INT64, []),
                helper.make_tensor_value_info(f"{STEP}{GOING}", onnx.TensorProto.BOOL, []),
                *(_renamed(values[name], inside) for name in state),
            ],
            [_renamed(values[NEXT + name], inside) for name in (GOING, *state)],
        )
        step = helper.make_node("Loop", ["", *(FIRST + name for name in (GOING, *state))], state, "search", body=body)
        before, after = ([_renamed(nodes[i], names) for i in places] for places in (loop.before, loop.after))
        kept = [*before, step, *after]
    else:
        kept = [_renamed(nodes[i], names) for i in operations.needed(wanted, given)]
    # Keep the inputs and weights that the stage uses, in its nodes or in the loop's body.
    used = {value for node in kept for value in (*node.input, *(v for a in node.attribute for n in a.g.node for v in n.input))}
    cut = helper.make_graph(
        kept,
        stage,
        [values[name] for name in given if name in used],
        [_renamed(values[value], names) for value in wanted],
        [tensor for tensor in model.graph.initializer if tensor.name in used],
    )
    # Name the free axes, so that a runtime takes any size of them.
    for value in (*cut.input, *cut.output):
        several = {0: "lists"} if (stage, value.name) == ("choose", OUTPUT) else {}
        for axis, what in {**FREE.get(value.name, {}), **several}.items():
            value.type.tensor_type.shape.dim[axis].dim_param = what.removeprefix(RAW)
    finished = helper.make_model(cut, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.checker.check_model(finished)
    return finished


def _renamed(entry: E, names: Mapping[str, str]) -> E:
    """Return a copy of a node or a value with its names replaced by those of `names`."""
    copy = type(entry)()
    copy.CopyFrom(entry)
    if isinstance(copy, onnx.NodeProto):
        for values in (copy.input, copy.output):
            values[:] = [names.get(value, value) for value in values]
    else:
        copy.name = names.get(copy.name, copy.name)
    return copy


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` with large weights in fp16, each followed by a cast to fp32."""
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
    return half


def _quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` with weights in int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # onnxruntime cannot multiply a stack of matrices that are quantised per channel.
    stacks = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 2}
    excluded = [node.name for node in model.graph.node if node.op_type == "MatMul" and stacks.intersection(node.input)]
    with TemporaryDirectory(prefix="pocketrank-") as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(model, path, per_channel=True, weight_type=QuantType.QInt8, nodes_to_exclude=excluded)
        return onnx.load(path)
