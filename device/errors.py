"""The base of errors that say what was expected, what was found instead, and where."""

from __future__ import annotations

__all__ = ["MismatchError"]


class MismatchError(Exception):
    """Something other than what was expected. `where` is a path, a call or a field."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        super().__init__(f"Expected {expected}, got {got} - at {where}")
        self.where, self.expected, self.got = where, expected, got
