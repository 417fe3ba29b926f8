"""Imports run one way: sdk_demo → export → cloud → device.{contract,codec}; export also uses device's runtimes and bundle."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("device", "cloud", "export", "sdk_demo", "benchmarks", "tests")

ALLOWED: dict[str, tuple[str, ...]] = {
    "device": ("device",),
    "cloud": ("cloud", "device.contract", "device.codec"),
    "export": (
        "export", "cloud.models", "cloud.training.run",
        "device.contract", "device.codec", "device.bundle", "device.runtimes",
    ),
    "sdk_demo": ("sdk_demo", "export", "cloud", "device"),
}  # fmt: skip
"""What a module of each package may import of ours; a name stands for everything below it. Benchmarks and tests may all."""

DEVICE_LIBRARIES = ("numpy", "msgspec", "onnxruntime", "nacl", "ai_edge_litert", "coremltools")
"""All that may be on a phone beside us. The last three are each imported by the one file that needs it: the one that verifies
signatures, and those of optional runtimes."""


class Import(NamedTuple):
    """One import statement: the line, and the modules of which at least one is meant.

    `from a import b` means `a.b` when that is a module and `a` otherwise, which the text alone does not tell.
    """

    line: int
    meant: tuple[str, ...]


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[Import]:
    """Every import in `source`, wherever it stands, with relative ones resolved against `module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, (alias.name,))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, base]) if base else ".".join(kept)
            for alias in node.names:
                yield Import(node.lineno, (base, f"{base}.{alias.name}"))
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0]
            if called in ("import_module", "__import__") and isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield Import(node.lineno, (name.value,))


def _below(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def forbidden(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """The imports of `source` that `module` may not make, as `line N: name`."""
    package = module.split(".")[0]
    allowed = ALLOWED.get(package, PACKAGES)
    return [
        f"line {found.line}: {found.meant[-1]}"
        for found in imports(source, module, is_package=is_package)
        if _below(found.meant[0], PACKAGES) and not any(_below(name, allowed) for name in found.meant)
    ]


def modules(package: str) -> Iterator[tuple[Path, str, bool]]:
    """Path, dotted name and whether it is a package, for each Python file of `package`."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        yield path, ".".join(parts[:-1] if is_package else parts), is_package


@pytest.mark.parametrize("package", ALLOWED)
def test_no_arrow_points_the_wrong_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}, {what}"
        for path, module, is_package in modules(package)
        for what in forbidden(path.read_text(), module, is_package=is_package)
    ]
    assert not wrong, f"`{package}` may import {', '.join(ALLOWED[package])} of ours:\n" + "\n".join(wrong)


def test_the_device_needs_its_few_libraries_and_no_other() -> None:
    known = {*sys.stdlib_module_names, *DEVICE_LIBRARIES, "device"}
    wrong = [
        f"{path.relative_to(ROOT)}, line {found.line}: {found.meant[0]}"
        for path, module, is_package in modules("device")
        for found in imports(path.read_text(), module, is_package=is_package)
        if found.meant[0].split(".")[0] not in known
    ]
    assert not wrong, "a device has numpy, msgspec, PyNaCl and one model runtime:\n" + "\n".join(wrong)


@pytest.mark.parametrize("package", ALLOWED)
def test_each_package_is_read(package: str) -> None:
    assert any(module == package for _, module, _ in modules(package))


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("device.session", "import cloud", ["line 1: cloud"]),
        ("device.session", "import numpy, export.bundle as b", ["line 1: export.bundle"]),
        ("device.session", "from cloud.models import ranker", ["line 1: cloud.models.ranker"]),
        ("device.session", "def f():\n    from sdk_demo import cli", ["line 2: sdk_demo.cli"]),
        ("device.session", "if TYPE_CHECKING:\n    from cloud.data.schema import ITEMS", ["line 2: cloud.data.schema.ITEMS"]),
        ("device.session", "try:\n    import cloud.models\nexcept ImportError:\n    pass", ["line 2: cloud.models"]),
        ("device.session", "importlib.import_module('cloud.models')", ["line 1: cloud.models"]),
        ("device.session", "from ..cloud import models", ["line 1: cloud.models"]),
        ("device.session", "import cloudpickle", []),
        ("device.runtimes.onnx", "from .base import Runtime\nfrom ..codec import to_block\nfrom .. import contract", []),
        ("cloud.pipeline", "from device.codec import to_block\nfrom device import contract\nimport device.contract", []),
        ("cloud.pipeline", "from device import FeedSession", ["line 1: device.FeedSession"]),
        ("cloud.pipeline", "import device", ["line 1: device"]),
        ("cloud.pipeline", "from device import contract, session", ["line 1: device.session"]),
        ("cloud.pipeline", "import device.codecs", ["line 1: device.codecs"]),
        ("cloud.pipeline", "import export.bundle\nimport tests.data", ["line 1: export.bundle", "line 2: tests.data"]),
        (
            "export.bundle",
            "from cloud.training import run\nfrom cloud.training.run import Run\nimport device.runtimes.onnx",
            [],
        ),
        ("export.bundle", "from cloud.training import train", ["line 1: cloud.training.train"]),
        ("export.bundle", "import device.session", ["line 1: device.session"]),
        ("sdk_demo.demo", "import export.bundle, cloud.serving.app, device.session", []),
        ("sdk_demo.demo", "import benchmarks.latency", ["line 1: benchmarks.latency"]),
        ("benchmarks.latency", "import device, cloud, export, sdk_demo", []),
    ],
)
def test_the_reader_sees_every_kind_of_import(module: str, source: str, expected: list[str]) -> None:
    assert forbidden(source, module) == expected


def test_relative_imports_are_resolved_from_a_package_and_from_a_module() -> None:
    assert [found.meant for found in imports("from . import a", "export.graphs")] == [("export", "export.a")]
    assert [found.meant for found in imports("from . import a", "export.graphs", is_package=True)] == [
        ("export.graphs", "export.graphs.a")
    ]
    assert [found.meant for found in imports("from ..x import a", "export.graphs.b")] == [("export.x", "export.x.a")]
