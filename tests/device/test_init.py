import subprocess
import sys

import pytest

from pocketrank import device

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
)

OURS = ("pocketrank.cloud", "pocketrank.export", "pocketrank.sdk_demo")


def _imported(code: str) -> set[str]:
    """What a fresh Python has imported after `code`: top-level names, and whole names of ours."""
    report = "import sys; print(*{n if n.startswith('pocketrank') else n.split('.')[0] for n in sys.modules})"
    run = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_device_is_light() -> None:
    assert not _imported("import pocketrank.device") & {*HEAVY, *OURS, "numpy", "msgspec", "onnxruntime"}


def test_a_session_needs_numpy_msgspec_and_onnxruntime_only() -> None:
    everything = "[getattr(device, name) for name in device.__all__]"
    imported = _imported(f"import pocketrank.device.runtimes.onnx\nfrom pocketrank import device\n{everything}")
    assert {"numpy", "msgspec", "onnxruntime"} <= imported
    assert not imported & {*HEAVY, *OURS}


def test_a_missing_litert_says_what_to_install() -> None:
    code = """
import sys
sys.modules["ai_edge_litert"] = None
from pathlib import Path
from pocketrank.device.runtimes import RuntimeLoadError, open_runtime
try:
    open_runtime(Path("model.tflite"), "tflite")
except RuntimeLoadError as err:
    assert "pip install ai-edge-litert" in str(err)
else:
    raise SystemExit("opened")
"""
    assert "pocketrank.device" in _imported(code)


@pytest.mark.parametrize("name", device.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(device, name).__name__ == name
    assert name in dir(device)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match=r"`pocketrank\.device` has no `Nothing`"):
        device.Nothing  # noqa: B018
