"""What can be wrong with something that crossed the wire.

Errors::

    ContractError              something crossed the wire that the contract does not allow
    ├── DecodeError            not MessagePack / JSON of the expected shape; names the path
    ├── VersionError           a struct of a version this reader does not know
    └── BlockError             a block whose bytes, shape and dtype disagree, or a column of the wrong width
"""

from __future__ import annotations

__all__ = ["BlockError", "ContractError", "DecodeError", "VersionError"]


class ContractError(ValueError):
    """Something crossed the wire that the contract does not allow.

    `path` says where (`$.candidates.vector`), `expected` and `got` say what.
    """

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(f"Expected {expected}, got {got} - at `{path}`")
        self.path, self.expected, self.got = path, expected, got


class DecodeError(ContractError):
    """The bytes are not MessagePack or JSON of the expected shape."""


class VersionError(ContractError):
    """A struct of a version that this reader does not know."""


class BlockError(ContractError):
    """A block whose bytes, shape and dtype disagree, or a column group of the wrong width."""
