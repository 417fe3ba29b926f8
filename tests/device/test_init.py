import subprocess
import sys

import pytest

import device

HEAVY = (
    "torch",
    "pyarrow",
    "polars",
    "fastapi",
    "pydantic",
    "onnx",
    "ai_edge_litert",
    "tensorflow",
    "nacl",
    "cloud",
    "export",
    "sdk_demo",
)


def _imported(code: str) -> set[str]:
    """Top-level names of what a fresh Python has imported after `code`."""
    report = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_device_is_light() -> None:
    assert not _imported("import device") & {*HEAVY, "numpy", "msgspec", "onnxruntime"}


def test_a_session_needs_numpy_msgspec_and_onnxruntime_only() -> None:
    imported = _imported("import device; [getattr(device, name) for name in device.__all__]; import device.runtimes.onnx")
    assert {"numpy", "msgspec", "onnxruntime"} <= imported
    assert not imported & set(HEAVY)


def test_a_missing_litert_says_what_to_install() -> None:
    code = """
import sys
sys.modules["ai_edge_litert"] = None
from pathlib import Path
from device.runtimes import RuntimeLoadError, open_runtime
try:
    open_runtime(Path("model.tflite"), "tflite")
except RuntimeLoadError as err:
    assert "pip install ai-edge-litert" in str(err)
else:
    raise SystemExit("opened")
"""
    assert "device" in _imported(code)


@pytest.mark.parametrize("name", device.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(device, name).__name__ == name
    assert name in dir(device)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="`device` has no `Nothing`"):
        device.Nothing  # noqa: B018
