"""Conversion to Core ML: the whole model as an ML program for iOS 17 and later, with free candidate and event counts.

fp16 computes in fp16, except for the inputs of logarithms and quotients: seconds since an event exceed fp16's largest value.
int8 applies to the weights only, per channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pocketrank.device.contract import Precision, Stage
from pocketrank.export.errors import ConversionError
from pocketrank.export.graphs import OUTPUT, Graph

__all__ = ["convert"]

WEIGHTS_MIN = 256
"""Tensors with fewer values are not quantised to int8: they hardly add to the file."""


def convert(graph: Graph, targets: Mapping[Precision, Mapping[Stage, Path]]) -> None:
    """Write the whole model to its path in each precision of `targets`, a .mlpackage folder.

    Raises `ConversionError`.
    """
    import coremltools

    program = graph.traced().run_decompositions({})
    full: Any = None
    for precision, paths in targets.items():
        path = paths["whole"]
        try:
            if precision == "fp16":
                model = _convert(coremltools, graph, program, half=True)
            else:
                full = full or _convert(coremltools, graph, program, half=False)
                model = full if precision == "fp32" else _quantise(coremltools, full)
            model.save(str(path))
        except Exception as error:  # converters raise many kinds
            raise ConversionError(f"{graph.form} coreml {precision}", "a model", f"{type(error).__name__} {error}") from error
        # The converter leaves a debugging file that is not part of the format.
        (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)


def _convert(ct: Any, graph: Graph, program: Any, *, half: bool) -> Any:
    spec = graph.spec
    ranges = {
        "candidate": ct.RangeDim(1, spec.candidates_max, default=spec.candidates_max),
        "event": ct.RangeDim(1, spec.events_max, default=spec.events_max),
    }
    inputs = []
    for name, value in graph.example().items():
        shape: list[Any] = list(value.shape)
        if (free := ranges.get(name.split("_")[0])) is not None:
            shape[1] = free
        inputs.append(ct.TensorType(name=name, shape=shape, dtype=np.int32 if name.endswith("category") else np.float32))
    return ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.transform.FP16ComputePrecision(op_selector=_halved) if half else ct.precision.FLOAT32,
        inputs=inputs,
        outputs=[ct.TensorType(name=OUTPUT, dtype=np.float32)],
        skip_model_load=True,
    )


def _halved(op: Any) -> bool:
    """Return whether fp16 is enough for an operation: not for logarithms and quotients, nor for their inputs."""
    if op.op_type in ("log", "real_div"):
        return False
    return all(_halved(user) for output in op.outputs for user in output.child_ops if _elementwise(user))


def _elementwise(op: Any) -> bool:
    return op.op_type in ("add", "sub", "mul", "clip", "minimum", "log", "real_div", "split", "slice_by_index")


def _quantise(ct: Any, model: Any) -> Any:
    from coremltools.optimize.coreml import OpLinearQuantizerConfig, OptimizationConfig, linear_quantize_weights

    config = OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=WEIGHTS_MIN
    )
    return linear_quantize_weights(model, OptimizationConfig(global_config=config))
