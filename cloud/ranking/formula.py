"""A fusion formula: an expression over task probabilities that people write, such as `long_view + 3 * like ** 0.5`.

Only numbers, task names, `+ - * / **`, parentheses and the functions below are taken, so a formula from a file runs no code.

Errors::

    FormulaError               not such an expression; says what is wrong and where
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["FUNCTIONS", "Formula", "FormulaError"]

FUNCTIONS: dict[str, Callable[..., object]] = {
    "log": np.log,
    "log1p": np.log1p,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "min": np.minimum,
    "max": np.maximum,
}
"""What a formula may call; `min` and `max` take two arguments, the others one."""

_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd)
_LONGEST = 2000
_EXPONENT_MAX = 16.0


class FormulaError(ValueError):
    """Not a formula."""


class Formula:
    """`text` over the tasks named `names`. Raises `FormulaError`."""

    def __init__(self, text: str, names: Sequence[str]) -> None:
        if len(text) > _LONGEST:
            raise FormulaError(f"expected at most {_LONGEST} characters, got {len(text)}")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise FormulaError(f"expected a formula, got {text!r}: {error}") from error
        self._names = tuple(names)
        self._check(tree.body, text)
        self._columns = [(i, name) for i, name in enumerate(self._names) if name in self._used(tree)]
        self._code = compile(tree, "<formula>", "eval")
        self._weights = self._linear(tree.body)

    def __call__(self, pxtr: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores [n] of probabilities [n, K], whose columns are the names. What is not a number scores lowest."""
        if self._weights is not None:
            return pxtr @ self._weights
        values = {name: pxtr[:, i] for i, name in self._columns}
        with np.errstate(all="ignore"):
            score = eval(self._code, {"__builtins__": {}, **FUNCTIONS}, values)
        score = np.broadcast_to(np.asarray(score, np.float32), (len(pxtr),))
        return np.where(np.isnan(score), np.float32(-np.inf), score)

    def _used(self, tree: ast.AST) -> set[str]:
        return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}

    def _check(self, node: ast.expr, text: str) -> None:
        match node:
            case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
                return
            case ast.Name() if node.id in self._names:
                return
            case ast.UnaryOp() if isinstance(node.op, _OPERATORS):
                self._check(node.operand, text)
            case ast.BinOp() if isinstance(node.op, _OPERATORS):
                if isinstance(node.op, ast.Pow):
                    self._check_exponent(node.right, text)
                self._check(node.left, text)
                self._check(node.right, text)
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
                expected = 2 if name in ("min", "max") else 1
                if len(node.args) != expected:
                    raise FormulaError(f"expected {expected} arguments for {name}, got {len(node.args)} in {text!r}")
                for argument in node.args:
                    self._check(argument, text)
            case _:
                got = ast.get_source_segment(text.strip(), node) or type(node).__name__
                known = ", ".join(self._names)
                raise FormulaError(f"expected numbers, + - * / **, {', '.join(FUNCTIONS)} and {known}; got `{got}`")

    def _check_exponent(self, node: ast.expr, text: str) -> None:
        # 9 ** 9 ** 9 of whole numbers would be worked out for ever
        match node:
            case ast.Constant(value=int(value) | float(value)) if abs(float(value)) <= _EXPONENT_MAX:
                return
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
                self._check_exponent(node.operand, text)
            case _:
                raise FormulaError(f"expected an exponent that is a number up to {_EXPONENT_MAX:g}, got another in {text!r}")

    def _linear(self, node: ast.expr) -> NDArray[np.float32] | None:
        """The weights [K] of a plain weighted sum, which is one product; None for any other formula."""
        weights = np.zeros(len(self._names), np.float32)

        def add(node: ast.expr) -> bool:
            match node:
                case ast.BinOp(op=ast.Add()):
                    return add(node.left) and add(node.right)
                case ast.BinOp(op=ast.Mult(), left=ast.Constant(value=int(value) | float(value)), right=ast.Name(id=name)):
                    weights[self._names.index(name)] += np.float32(value)
                    return True
                case ast.Name(id=name):
                    weights[self._names.index(name)] += np.float32(1)
                    return True
            return False

        return weights if add(node) else None
