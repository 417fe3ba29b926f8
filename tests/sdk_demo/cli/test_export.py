import io
from typing import Any

from rich.console import Console

from pocketrank.sdk_demo.cli.export import _print_models


def _row(kilobytes: int, search_ms: float | None, loss: float | None) -> dict[str, Any]:
    return {
        "bytes": 1000 * kilobytes,
        "bytes_all": 2000 * kilobytes,
        "max_abs_diff": 2.3e-7,
        "p50_ms": None if search_ms is None else search_ms / 4,
        "stages": {} if search_ms is None else {"search": {"p50_ms": search_ms}},
        "gate": None if loss is None else {"loss": loss, "order_agreement": 0.967},
        "runtime": "onnxruntime 1.31.1",
    }


def test_the_table_of_models_fits_into_80_columns() -> None:
    report = {
        "models": {"self_contained.fp32.tflite": _row(277, 1.42, None), "split.fp16.onnx": _row(12_345, 80.5, -0.0012)},
        "rejected": {"self_contained.int8.coreml": _row(309, None, 0.02)},
    }
    console = Console(file=io.StringIO(), width=80, color_system=None)
    _print_models(console, report, title="runs/bundle: models, compared with torch")
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for figure in ("277", "24,690", "2e-07", "80.500", "-0.0012", "96.7%", "onnxruntime 1.31.1"):
        assert figure in text
    assert "not in the bundle, because it ranks too differently: self_contained.int8.coreml" in text
