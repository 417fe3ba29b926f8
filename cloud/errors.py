"""Base class of errors of the cloud that name what was expected, what was found, and where."""

from __future__ import annotations

__all__ = ["MismatchError"]


class MismatchError(Exception):
    """Something differs from what was expected: `expected` and `got` say what, and `where` says where."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        super().__init__(f"Expected {expected}, got {got} - at {where}")
        self.where, self.expected, self.got = where, expected, got
