"""To LiteRT (TFLite): static shapes, one signature `n<size>` per list size of the spec, weights shared among them.

fp16 and int8 are weights only: XNNPACK computes in fp32 either way, and full static int8 lost a fifth of a score in trials.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn

from cloud.models.reranker import UpperHalf
from device.contract import Precision
from export.errors import ConversionError, UnsupportedError
from export.graphs import OUTPUT, Graph

__all__ = ["convert"]


def convert(graph: Graph, targets: Mapping[Precision, Path]) -> None:
    """Write `graph` to each path of `targets` in its precision. Raises `ConversionError`, `UnsupportedError`."""
    with TemporaryDirectory(prefix="pocketrank-") as folder:
        full = targets.get("fp32") or Path(folder) / "fp32.tflite"
        _float_model(graph, full)
        for precision in targets:
            if precision == "fp32":
                continue
            try:
                _quantise(full, targets[precision], precision)
            except Exception as error:  # converters raise many kinds
                raise ConversionError(
                    f"{graph.form} tflite {precision}", "a model", f"{type(error).__name__} {error}"
                ) from error


class _Scores(nn.Module):
    """Names the output."""

    def __init__(self, model: UpperHalf) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {OUTPUT: self.model(**inputs)}


def _float_model(graph: Graph, path: Path) -> None:
    try:
        import litert_torch
    except ImportError as error:
        raise UnsupportedError("format tflite", "pip install 'pocketrank[tflite]'", str(error)) from error
    sizes = graph.spec.list_sizes
    if not sizes or sizes[-1] < graph.spec.candidates_max:
        raise UnsupportedError("format tflite", f"list sizes up to candidates_max = {graph.spec.candidates_max}", f"{sizes}")
    model = _Scores(graph.model).eval()
    try:
        first, *more = sizes
        signatures = litert_torch.signature(f"n{first}", model, sample_kwargs=graph.example(first))
        for size in more:
            signatures = signatures.signature(f"n{size}", model, sample_kwargs=graph.example(size))
        signatures.convert().export(str(path))
    except Exception as error:
        raise ConversionError(f"{graph.form} tflite", "a model", f"{type(error).__name__} {error}") from error


def _quantise(full: Path, path: Path, precision: Precision) -> None:
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe

    if precision == "int8":
        work = quantizer.Quantizer(str(full), recipe.weight_only_wi8_afp32())
    else:
        work = quantizer.Quantizer(str(full))
        work.update_quantization_recipe(
            regex=".*",
            operation_name=qtyping.TFLOperationName.FULLY_CONNECTED,
            op_config=qtyping.OpQuantizationConfig(
                weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
                compute_precision=qtyping.ComputePrecision.FLOAT,
                explicit_dequantize=True,
            ),
            algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
        )
    work.quantize().export_model(str(path), overwrite=True)
