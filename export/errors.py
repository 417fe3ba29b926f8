"""Errors of an export.

Errors::

    MismatchError              an expectation that was not met; also the base of the world's and the emulator's errors
    └── ExportError            an export that failed; `where` is a file, a package or a model
        ├── UnsupportedError   a missing package, an unknown format, precision or operation
        ├── ConversionError    a converter failed; carries the end of its log
        ├── ParityError        the scores of an exported model differ from torch's
        ├── GateError          the rows that gate reduced precisions are missing or malformed
        ├── BudgetError        a model is larger or slower than its budget
        ├── SigningKeyError    a private key that is missing, malformed, readable by others, or already there
        └── ExportOutputError  the output folder holds other files, or cannot be written
"""

from __future__ import annotations

from pocketrank.device.contract import MismatchError

__all__ = [
    "BudgetError",
    "ConversionError",
    "ExportError",
    "ExportOutputError",
    "GateError",
    "ParityError",
    "SigningKeyError",
    "UnsupportedError",
]


class ExportError(MismatchError, RuntimeError):
    """An export that failed. `where` is a file, a package or a model."""


class UnsupportedError(ExportError):
    """A missing package, an unknown format, precision or operation."""


class ConversionError(ExportError):
    """A converter failed."""


class ParityError(ExportError):
    """The scores of an exported model differ from torch's."""


class GateError(ExportError):
    """The rows that gate reduced precisions are missing or malformed."""


class BudgetError(ExportError):
    """A model is larger or slower than its budget."""


class SigningKeyError(ExportError):
    """A private key that is missing, malformed, readable by others, or already there."""


class ExportOutputError(ExportError):
    """The output folder holds other files, or cannot be written."""
