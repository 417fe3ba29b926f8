"""Extras of the package (`pip install 'pocketrank[EXTRA]'`) that bring the libraries of each command."""

from __future__ import annotations

__all__ = ["install_hint"]

_BY_COMMAND = {
    "data": "cloud",
    "train": "cloud",
    "tune": "tune",
    "evaluate": "cloud",
    "runs": "serve",
    "keygen": "export",
    "export": "export",
    "release": "export",
    "inspect": "export",
    "token": "serve",
    "serve": "serve",
    "learn": "cloud",
    "forget": "serve",
    "log": "cloud",
    "upload": "serve",
    "rollback": "serve",
    "workflow": "workflow",
    "emulate": "demo",
    "demo": "demo",
}
_BY_LIBRARY = {
    "ai_edge_litert": "tflite",
    "ai_edge_quantizer": "tflite",
    "coremltools": "coreml",
    "executorch": "executorch",
    "httpx": "serve",
    "litert_torch": "tflite",
    "matplotlib": "demo",
    "mlflow": "mlflow",
}
"""Extras of the libraries that the extra of a command does not bring; `demo` brings all of them but ExecuTorch."""
_LIBRARIES = frozenset(_BY_LIBRARY) | {
    "faiss",
    "cryptography",
    "doit",
    "duckdb",
    "fastapi",
    "filelock",
    "flatbuffers",
    "httptools",
    "httpx",
    "jaxtyping",
    "jwt",
    "nacl",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "opentelemetry",
    "prometheus_client",
    "pyarrow",
    "qdrant_client",
    "rich",
    "safetensors",
    "sklearn",
    "starlette",
    "tensorboard",
    "torch",
    "typer",
    "uvicorn",
    "uvloop",
    "valkey",
}
"""Top-level modules of all libraries that an extra brings. Any other module that is missing is a bug or a user's plug-in."""


def install_hint(command: str | None, error: ModuleNotFoundError) -> str | None:
    """Return which library `command` needs and the line that installs it; None when no extra brings the module."""
    library = (error.name or "").partition(".")[0]
    if library not in _LIBRARIES:
        return None
    extra = _BY_COMMAND.get(command or "", "demo")
    if extra != "demo":
        extra = _BY_LIBRARY.get(library, extra)
    name = f"pocketrank {command}" if command in _BY_COMMAND else "pocketrank"
    return f"{name} needs {library}: pip install 'pocketrank[{extra}]'"
