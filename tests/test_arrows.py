"""Imports run one way: sdk_demo → export → cloud → pages → device.{contract,codec}; export also uses device's runtimes and
bundle.

No module imports another in a circle, and none of ours is imported under its folder's bare name.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
BARE = ("device", "pages", "cloud", "export", "sdk_demo")
"""The folders of the package `pocketrank`."""
PACKAGES = ("pocketrank", "benchmarks", "tests")

ALLOWED: dict[str, tuple[str, ...]] = {
    "device": ("device",),
    "pages": ("pages", "device.contract", "device.codec"),
    "cloud": ("cloud", "pages", "device.contract", "device.codec"),
    "export": (
        "export", "cloud.models", "cloud.training.run",
        "device.contract", "device.codec", "device.bundle", "device.runtimes",
    ),
    "sdk_demo": ("sdk_demo", "export", "cloud", "pages", "device"),
}  # fmt: skip
"""What a module of each folder may import of ours, in names below `pocketrank`; a name stands for everything below it.
Benchmarks and tests may import all. `pocketrank` itself holds the version, and anybody may ask for it."""

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


def _allowed(name: str, folder: str) -> bool:
    return name == "pocketrank.__version__" or _below(name, tuple(f"pocketrank.{root}" for root in ALLOWED[folder]))


def forbidden(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """The imports of `source` that `module` may not make, as `line N: name`."""
    parts = module.split(".")
    folder = parts[1] if parts[0] == "pocketrank" and len(parts) > 1 else None
    wrong = []
    for found in imports(source, module, is_package=is_package):
        bare = _below(found.meant[0], BARE)
        ours = folder is not None and _below(found.meant[0], PACKAGES)
        if bare or (ours and folder is not None and not any(_allowed(name, folder) for name in found.meant)):
            wrong.append(f"line {found.line}: {found.meant[-1]}")
    return wrong


def modules(package: str) -> Iterator[tuple[Path, str, bool]]:
    """Path, dotted name and whether it is a package, for each Python file of the folder `package`."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        yield path, f"pocketrank.{name}" if package in BARE else name, is_package


def cycles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Modules that reach each other, a list for each circle (strongly connected components, Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            circle, stack[at:] = sorted(stack[at:]), []
            if len(circle) > 1 or node in arrows.get(node, ()):
                found.append(circle)

    for node in sorted(arrows):
        visit(node)
    return found


def graph() -> dict[str, set[str]]:
    """What each of our modules imports of ours, in functions and for types alone as well.

    Importing `a.b.c` runs the `__init__` of `a.b` too, unless the importing module is below `a.b` itself.
    """
    read = [found for package in (*BARE, "benchmarks") for found in modules(package)]
    known = {module for _, module, _ in read}
    arrows: dict[str, set[str]] = {}
    for path, module, is_package in read:
        arrows[module] = set()
        for found in imports(path.read_text(), module, is_package=is_package):
            name = next((name for name in reversed(found.meant) if name in known), None)
            while name is not None and not _below(module, (name,)):
                arrows[module].add(name)
                name = name.rpartition(".")[0]
                name = name if name in known else None
    return arrows


@pytest.mark.parametrize("package", [*ALLOWED, "benchmarks", "tests"])
def test_no_arrow_points_the_wrong_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}, {what}"
        for path, module, is_package in modules(package)
        for what in forbidden(path.read_text(), module, is_package=is_package)
    ]
    allowed = ", ".join(f"pocketrank.{name}" for name in ALLOWED[package]) if package in ALLOWED else "pocketrank.*"
    assert not wrong, f"`{package}` may import {allowed} of ours:\n" + "\n".join(wrong)


def test_no_module_imports_in_a_circle() -> None:
    assert not cycles(graph())


@pytest.mark.parametrize(("package", "libraries"), [("device", DEVICE_LIBRARIES), ("pages", ("numpy", "msgspec"))])
def test_a_package_that_others_build_in_needs_its_few_libraries(package: str, libraries: tuple[str, ...]) -> None:
    known = {*sys.stdlib_module_names, *libraries, "pocketrank"}
    wrong = [
        f"{path.relative_to(ROOT)}, line {found.line}: {found.meant[0]}"
        for path, module, is_package in modules(package)
        for found in imports(path.read_text(), module, is_package=is_package)
        if found.meant[0].split(".")[0] not in known
    ]
    assert not wrong, f"`{package}` may import {', '.join(libraries)} of others:\n" + "\n".join(wrong)


@pytest.mark.parametrize("package", ALLOWED)
def test_each_package_is_read(package: str) -> None:
    assert any(module == f"pocketrank.{package}" for _, module, _ in modules(package))


def test_circles_are_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}, "e": {"a", "d"}}) == [["b", "c"], ["d"]]
    assert not cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    assert "pocketrank.device.codec" in graph()["pocketrank.device.session.session"]


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("device.session", "import pocketrank.cloud", ["line 1: pocketrank.cloud"]),
        ("device.session", "import cloud", ["line 1: cloud"]),
        ("device.session", "from device import codec", ["line 1: device.codec"]),
        ("device.session", "import numpy, pocketrank.export.bundle as b", ["line 1: pocketrank.export.bundle"]),
        ("device.session", "from pocketrank.cloud.models import ranker", ["line 1: pocketrank.cloud.models.ranker"]),
        ("device.session", "def f():\n    from pocketrank.sdk_demo import cli", ["line 2: pocketrank.sdk_demo.cli"]),
        (
            "device.session",
            "if TYPE_CHECKING:\n    from pocketrank.cloud.data.schema import ITEMS",
            ["line 2: pocketrank.cloud.data.schema.ITEMS"],
        ),
        (
            "device.session",
            "try:\n    import pocketrank.cloud.models\nexcept ImportError:\n    pass",
            ["line 2: pocketrank.cloud.models"],
        ),
        ("device.session", "importlib.import_module('pocketrank.cloud.models')", ["line 1: pocketrank.cloud.models"]),
        ("device.session", "from ..cloud import models", ["line 1: pocketrank.cloud.models"]),
        ("device.session", "import cloudpickle\nfrom pocketrank import __version__", []),
        ("device.runtimes.onnx", "from .base import Runtime\nfrom ..codec import to_block\nfrom .. import contract", []),
        (
            "cloud.pipeline",
            "from pocketrank.device.codec import to_block\n"
            "from pocketrank.device import contract\n"
            "import pocketrank.device.contract",
            [],
        ),
        ("cloud.pipeline", "from pocketrank.device import FeedSession", ["line 1: pocketrank.device.FeedSession"]),
        ("cloud.pipeline", "import pocketrank.device", ["line 1: pocketrank.device"]),
        ("cloud.pipeline", "from pocketrank import device", ["line 1: pocketrank.device"]),
        ("cloud.pipeline", "from pocketrank.device import contract, session", ["line 1: pocketrank.device.session"]),
        ("cloud.pipeline", "import pocketrank.device.codecs", ["line 1: pocketrank.device.codecs"]),
        (
            "cloud.pipeline",
            "import pocketrank.export.bundle\nimport tests.data",
            ["line 1: pocketrank.export.bundle", "line 2: tests.data"],
        ),
        ("cloud.pipeline", "from pocketrank.pages.http import answer", []),
        ("pages.http", "import pocketrank.cloud.files", ["line 1: pocketrank.cloud.files"]),
        (
            "export.bundle",
            "from pocketrank.cloud.training import run\n"
            "from pocketrank.cloud.training.run import Run\n"
            "import pocketrank.device.runtimes.onnx",
            [],
        ),
        ("export.bundle", "from pocketrank.cloud.training import train", ["line 1: pocketrank.cloud.training.train"]),
        ("export.bundle", "import pocketrank.device.session", ["line 1: pocketrank.device.session"]),
        (
            "sdk_demo.demo",
            "import pocketrank.export.bundle, pocketrank.cloud.serving.app, pocketrank.device.session",
            [],
        ),
        ("sdk_demo.demo", "import benchmarks.latency", ["line 1: benchmarks.latency"]),
    ],
)
def test_the_reader_sees_every_kind_of_import(module: str, source: str, expected: list[str]) -> None:
    assert forbidden(source, f"pocketrank.{module}") == expected


def test_benchmarks_may_import_everything_but_bare_names() -> None:
    source = "import pocketrank.device, pocketrank.cloud\nimport benchmarks.latency\nimport sdk_demo.cli"
    assert forbidden(source, "benchmarks.latency") == ["line 3: sdk_demo.cli"]


def test_relative_imports_are_resolved_from_a_package_and_from_a_module() -> None:
    assert [found.meant for found in imports("from . import a", "export.graphs")] == [("export", "export.a")]
    assert [found.meant for found in imports("from . import a", "export.graphs", is_package=True)] == [
        ("export.graphs", "export.graphs.a")
    ]
    assert [found.meant for found in imports("from ..x import a", "export.graphs.b")] == [("export.x", "export.x.a")]
