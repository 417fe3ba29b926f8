"""A public name is in its module's `__all__` and has a docstring; nothing public is left out."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
PACKAGES = ("device", "pages", "cloud", "export", "sdk_demo")

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _modules() -> Iterator[str]:
    for package in PACKAGES:
        for path in sorted((SRC / "pocketrank" / package).rglob("*.py")):
            parts = path.relative_to(SRC).with_suffix("").parts
            # `__main__` is a script. A docstring has nothing to list, and `import *` passes on what a module lists.
            if parts[-1] != "__main__" and not all(map(_lists_nothing, ast.parse(path.read_text()).body)):
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _lists_nothing(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) or (isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] == ["*"])


def _definitions(body: list[ast.stmt]) -> Iterator[Definition]:
    """Public classes and functions of a body, also those behind an `if` or a `try`."""
    for node in body:
        if isinstance(node, Definition):
            if not node.name.startswith("_"):
                yield node
        elif isinstance(node, ast.If):
            yield from _definitions(node.body + node.orelse)
        elif isinstance(node, ast.Try):
            yield from _definitions(node.body + [stmt for handler in node.handlers for stmt in handler.body] + node.orelse)


def _excused(method: Definition) -> bool:
    """Overloads, overrides and property setters are documented where they come from."""
    names = {decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")
             for decorator in method.decorator_list}  # fmt: skip
    return bool(names & {"overload", "override", "setter", "deleter"})


def undocumented(source: str) -> list[str]:
    """Public classes, functions and methods of `source` without a docstring, as `line N: name`."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else ["line 1: the module"]
    for node in _definitions(tree.body):
        if not ast.get_docstring(node) and not _excused(node):
            found.append(f"line {node.lineno}: {node.name}")
        if isinstance(node, ast.ClassDef):
            found += [
                f"line {method.lineno}: {node.name}.{method.name}"
                for method in _definitions(node.body)
                if not ast.get_docstring(method) and not _excused(method)
            ]
    return found


def unlisted(source: str, listed: list[str]) -> list[str]:
    """Public classes and functions that `source` defines and `__all__` does not list."""
    return sorted({node.name for node in _definitions(ast.parse(source).body)} - set(listed))


def _source(module: str) -> str:
    path = SRC.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


@pytest.mark.parametrize("name", list(_modules()))
def test_public_names_are_listed_and_documented(name: str) -> None:
    module = importlib.import_module(name)
    source = _source(name)
    assert hasattr(module, "__all__"), f"{name} has no `__all__`"
    listed = list(module.__all__)
    assert len(set(listed)) == len(listed), f"{name}.__all__ lists a name twice"
    assert not [entry for entry in listed if not hasattr(module, entry)], f"{name}.__all__ lists what is not there"
    assert not unlisted(source, listed), f"{name} defines public names that `__all__` does not list"
    assert not undocumented(source), f"{name} has public names without a docstring"
    for entry in listed:
        value = getattr(module, entry)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"{name}.{entry} has no docstring"


def test_the_reader_finds_what_is_missing() -> None:
    source = '''
import typing

class Bare:
    def method(self): ...
    @property
    def told(self):
        """Told."""
    @told.setter
    def told(self, value): ...
    def _private(self): ...

def function(): ...

if typing.TYPE_CHECKING:
    def guarded(): ...

def _helper(): ...
'''
    assert undocumented(source) == [
        "line 1: the module", "line 4: Bare", "line 5: Bare.method", "line 13: function", "line 16: guarded",
    ]  # fmt: skip
    assert unlisted(source, ["Bare"]) == ["function", "guarded"]
