"""The error of a benchmark.

Errors::

    BenchmarkError             a measurement that would not mean what it says
"""

from __future__ import annotations

__all__ = ["BenchmarkError"]


class BenchmarkError(RuntimeError):
    """A measurement that would not mean what it says. `where`, `expected` and `got` give the reason."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        super().__init__(f"{where}: expected {expected}, got {got}")
        self.where, self.expected, self.got = where, expected, got
