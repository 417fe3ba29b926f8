"""Conversion to LiteRT (TFLite): static shapes, one file with all stages, which share their weights.

Signatures are `n<size>` for the whole model at each list size of the spec, `<stage>_n<size>` for its stages, and
`event_t<size>` for one event and for `events_max` events. The stage `search` is a `WHILE` that ends with the search.

fp16 and int8 apply to the weights only: XNNPACK computes in fp32 either way, and with full static int8 scores were off by a
fifth in trials.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn

from pocketrank.device.contract import Precision, Stage
from pocketrank.device.runtimes import stage_inputs
from pocketrank.export.errors import ConversionError, UnsupportedError
from pocketrank.export.graphs import Graph, stage_output
from pocketrank.export.tflite_cut import cut_stages

__all__ = ["convert"]

ONE_EVENT = "event_t1"
"""Signature of the stage `event` for the newest event alone."""


def convert(graph: Graph, targets: Mapping[Precision, Mapping[Stage, Path]]) -> None:
    """Write `graph` to the paths of `targets`, the same for all stages. Raises `ConversionError`, `UnsupportedError`."""
    with TemporaryDirectory(prefix="pocketrank-") as folder:
        full, reduced = Path(folder) / "fp32.tflite", Path(folder) / "reduced.tflite"
        _convert(graph, full)
        for precision, paths in targets.items():
            try:
                if precision != "fp32":
                    _quantise(full, reduced, precision)
                data = (full if precision == "fp32" else reduced).read_bytes()
                for path in set(paths.values()):
                    path.write_bytes(cut_stages(data, graph, _signatures(graph)))
            except Exception as error:  # converters raise many kinds
                raise ConversionError(
                    f"{graph.form} tflite {precision}", "a model", f"{type(error).__name__} {error}"
                ) from error


class _Event(nn.Module):
    """The stage `event` as a module."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.stages = graph.modules

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return {stage_output("event", name): value for name, value in self.stages.run("event", inputs).items()}


def _signatures(graph: Graph) -> dict[str, tuple[str, Stage]]:
    """Return the signatures of the file: name → the converted signature that it is cut from, and its stage."""
    spec = graph.spec
    found: dict[str, tuple[str, Stage]] = {ONE_EVENT: (ONE_EVENT, "event")}
    for size in spec.list_sizes:
        for stage in graph.stages:
            name = {"whole": f"n{size}", "event": f"event_t{spec.events_max}"}.get(stage, f"{stage}_n{size}")
            found.setdefault(name, (f"n{size}", stage))
    return found


def _convert(graph: Graph, path: Path) -> None:
    """Write a file with all stages side by side, a signature for each list size."""
    import litert_torch

    spec = graph.spec
    sizes = spec.list_sizes
    if not sizes or sizes[-1] < spec.candidates_max:
        raise UnsupportedError("format tflite", f"list sizes up to candidates_max = {spec.candidates_max}", f"{sizes}")
    one = {name: value for name, value in graph.example(1, 1).items() if name in stage_inputs(graph.form, "event")}
    modules = graph.modules
    try:
        signatures = litert_torch.signature(ONE_EVENT, _Event(graph).eval(), sample_kwargs=one)
        for size in sizes:
            signatures = signatures.signature(f"n{size}", modules, sample_kwargs=graph.stages_example(size, spec.events_max))
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
