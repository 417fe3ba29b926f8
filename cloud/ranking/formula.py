"""A fusion formula: an expression over task probabilities that people write, such as `long_view + 3 * like ** 0.5`.

Only numbers, task names, `+ - * / **`, parentheses and the functions below are accepted, so a formula from a file runs no code.

A formula never fails a page. What is wrong for every user is refused when the file is read: a constant part without a finite
value (`1 / 0`, `exp(1000)`), weights whose sum overflows, and a formula without one finite score over a sample of probabilities
(`sqrt(like - 2)`). What is not finite for some probabilities only (`log(like)` at 0) is clipped to the range of fp32 when pages
are scored.

Errors::

    FormulaError               the text is not a usable formula; says what is wrong and where
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import NoReturn

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
"""Functions that a formula may call; `min` and `max` take two arguments, the others one."""

_OPERATORS: dict[type[ast.AST], Callable[..., object]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
    ast.USub: np.negative,
    ast.UAdd: np.positive,
}
_LENGTH_MAX = 2000
_EXPONENT_MAX = 16.0
_SCORE_MAX = float(np.finfo(np.float32).max)
_WEIGHTS_MAX = 1e38
"""Largest sum of a linear formula's weights: well below `_SCORE_MAX`, so that no partial sum of scores overflows."""
_SAMPLES = 64


class FormulaError(ValueError):
    """The text is not a usable formula."""


class Formula:
    """`text` over the tasks named `names`. Raises `FormulaError`."""

    def __init__(self, text: str, names: Sequence[str]) -> None:
        if len(text) > _LENGTH_MAX:
            raise FormulaError(f"Expected a formula of at most {_LENGTH_MAX} characters, got {len(text)}")
        self._text, self._names = text.strip(), tuple(names)
        try:
            tree = self._parsed()
            tree.body = self._folded(tree.body)
            self._code = compile(tree, "<formula>", "eval")
            self._weights = self._linear(tree.body)
        except RecursionError as error:
            raise FormulaError(f"Expected a formula with fewer terms or parentheses, got {text!r}") from error
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        self._columns = [(i, name) for i, name in enumerate(self._names) if name in used]
        self._try_out()

    def __call__(self, pxtr: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores [n] of probabilities [n, K], whose columns are the tasks.

        Every score is finite: one that overflows is the largest or the lowest fp32 number, and NaN is the lowest.
        """
        if self._weights is not None:
            return pxtr @ self._weights
        # `fmax` takes the number where the other value is NaN.
        score: NDArray[np.float32] = np.minimum(np.fmax(self._evaluate(pxtr), -_SCORE_MAX), _SCORE_MAX)
        return score

    def _evaluate(self, pxtr: NDArray[np.float32]) -> NDArray[np.float32]:
        # After folding, each operation has an array among its operands, so numpy computes all of them and none raises.
        values = {name: pxtr[:, i] for i, name in self._columns}
        with np.errstate(all="ignore"):
            score = eval(self._code, {"__builtins__": {}, **FUNCTIONS}, values)
        return np.broadcast_to(np.asarray(score, np.float32), (len(pxtr),))

    def _parsed(self) -> ast.Expression:
        try:
            return ast.parse(self._text, mode="eval")
        except (SyntaxError, ValueError, MemoryError) as error:
            raise FormulaError(f"Expected a formula, got {self._text!r}: {error}") from error

    def _folded(self, node: ast.expr) -> ast.expr:
        """Check `node` and return it with every part that names no task replaced by its value."""
        match node:
            case ast.Constant(value=int(value) | float(value)) if not isinstance(value, bool):
                return self._constant(node, lambda: float(value))
            case ast.Name() if node.id in self._names:
                return node
            case ast.UnaryOp(op=op) if type(op) in _OPERATORS:
                node.operand = self._folded(node.operand)
                function, parts = _OPERATORS[type(op)], [node.operand]
            case ast.BinOp(op=op) if type(op) in _OPERATORS:
                node.left, node.right = self._folded(node.left), self._folded(node.right)
                if isinstance(op, ast.Pow):
                    self._check_exponent(node.right)
                function, parts = _OPERATORS[type(op)], [node.left, node.right]
            # A task that is named like a function hides it.
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS and name not in self._names:
                expected = 2 if name in ("min", "max") else 1
                if len(node.args) != expected:
                    raise FormulaError(
                        f"Expected {expected} arguments of {name}, got {len(node.args)} - at `{self._source(node)}`"
                    )
                node.args = [self._folded(argument) for argument in node.args]
                function, parts = FUNCTIONS[name], node.args
            case _:
                known = ", ".join(self._names)
                self._refuse(node, f"numbers, + - * / **, {', '.join(FUNCTIONS)} and {known}")
        values = [part.value for part in parts if isinstance(part, ast.Constant)]
        return self._constant(node, lambda: function(*values)) if len(values) == len(parts) else node

    def _constant(self, node: ast.expr, value: Callable[[], object]) -> ast.Constant:
        """Return the value of a constant part, worked out in fp64, which must be within the range of fp32."""
        try:
            with np.errstate(all="ignore"):
                number = float(value())  # type: ignore[arg-type]
        except OverflowError:  # a whole number of more than 308 digits
            number = np.inf
        if not abs(number) <= _SCORE_MAX:  # NaN fails too
            self._refuse(node, f"a constant with a value of at most {_SCORE_MAX:.2g}", f"which is {number:g}")
        return ast.copy_location(ast.Constant(number), node)

    def _check_exponent(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=float(value)) if abs(value) <= _EXPONENT_MAX:
                return
        self._refuse(node, f"a constant of at most {_EXPONENT_MAX:g} as exponent")

    def _linear(self, node: ast.expr) -> NDArray[np.float32] | None:
        """Return the weights [K] of a plain weighted sum, which takes one matrix product; None for any other formula."""
        weights = np.zeros(len(self._names), np.float32)

        def add(node: ast.expr) -> bool:
            match node:
                case ast.BinOp(op=ast.Add()):
                    return add(node.left) and add(node.right)
                case ast.BinOp(op=ast.Mult(), left=ast.Constant(value=float(value)), right=ast.Name(id=name)):
                    weights[self._names.index(name)] += np.float32(value)
                    return True
                case ast.Name(id=name):
                    weights[self._names.index(name)] += np.float32(1)
                    return True
            return False

        with np.errstate(all="ignore"):
            if not add(node):
                return None
        # Probabilities are at most 1, so no partial sum of the product exceeds that of the weights.
        if not (total := np.abs(weights).sum(dtype=np.float64)) <= _WEIGHTS_MAX:
            self._refuse(node, f"weights with a sum of at most {_WEIGHTS_MAX:g}", f"whose sum is {total:g}")
        return weights

    def _try_out(self) -> None:
        uniform = np.random.default_rng(0).random((_SAMPLES, len(self._names)), np.float32)
        pxtr = np.concatenate([uniform, uniform**8])  # rare actions have probabilities of a thousandth and less
        if self._weights is None and not np.isfinite(self._evaluate(pxtr)).any():
            raise FormulaError(f"Expected a formula that is finite for some probabilities, got `{self._text}`")

    def _refuse(self, node: ast.expr, expected: str, which: str = "") -> NoReturn:
        raise FormulaError(f"Expected {expected}; got `{self._source(node)}`" + (f", {which}" if which else ""))

    def _source(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._text, node) or type(node).__name__
