"""Errors of the contract: what can be wrong with a struct that crossed the wire.

Errors::

    MismatchError              something other than what was expected; says expected, got, and where
    └── ContractError          something crossed the wire that the contract does not allow; also a ValueError
        ├── DecodeError        not MessagePack or JSON of the expected shape; names the path
        ├── VersionError       a struct of a version that this reader does not know
        └── BlockError         a block whose bytes, shape and dtype disagree, or a column group of the wrong width
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["BlockError", "ContractError", "DecodeError", "MismatchError", "VersionError"]


class MismatchError(Exception):
    """Base of the errors that report what was expected, what was found instead, and where.

    The message is "Expected `expected`, got `got` - at `where`". The three texts are attributes.
    """

    def __init__(self, where: str | Path, expected: str, got: str) -> None:
        super().__init__(f"Expected {expected}, got {got} - at {where}")
        self.where, self.expected, self.got = str(where), expected, got


class ContractError(MismatchError, ValueError):
    """Something crossed the wire that the contract does not allow.

    `path` is the place in the struct, such as `$.candidates.vector`.
    """

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(f"`{path}`", expected, got)
        self.path = path


class DecodeError(ContractError):
    """The bytes are not MessagePack or JSON of the expected shape."""


class VersionError(ContractError):
    """A struct of a version that this reader does not know."""


class BlockError(ContractError):
    """A block whose bytes, shape and dtype disagree, or a column group of the wrong width."""
