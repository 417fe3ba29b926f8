"""What an export can fail with.

Errors::

    ExportError                an export that cannot be; `where` is a file, an extra or a model, `expected` and `got` say what
    ├── UnsupportedError       a converter that is not installed, no such format or precision, an unknown operation
    ├── ConversionError        a converter failed; carries the end of what it said
    ├── ParityError            an exported model answers differently from torch
    ├── GateError              the rows that reduced precisions are gated on are missing or malformed
    ├── BudgetError            a model is larger or slower than its budget
    ├── SigningKeyError        a private key that is missing, malformed, readable by others, or already there
    └── ExportOutputError            the place for the bundle holds something else, or cannot be written
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "ConversionError",
    "ExportError",
    "GateError",
    "ExportOutputError",
    "ParityError",
    "SigningKeyError",
    "UnsupportedError",
]


class ExportError(RuntimeError):
    """An export that cannot be. `where` is a file, an extra or a model, `expected` and `got` say what."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        super().__init__(f"{where}: expected {expected}, got {got}")
        self.where, self.expected, self.got = where, expected, got


class UnsupportedError(ExportError):
    """A converter that is not installed, a format or precision that does not exist, or an unknown operation."""


class ConversionError(ExportError):
    """A converter failed."""


class ParityError(ExportError):
    """An exported model answers differently from torch."""


class GateError(ExportError):
    """The rows that reduced precisions are gated on are missing or malformed."""


class BudgetError(ExportError):
    """A model is larger or slower than its budget."""


class SigningKeyError(ExportError):
    """A private key that is missing, malformed, readable by others, or already there."""


class ExportOutputError(ExportError):
    """The place for the bundle holds something else, or cannot be written."""
