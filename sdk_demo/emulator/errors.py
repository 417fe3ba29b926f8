"""What an emulation can fail with, besides what the device SDK and the world raise.

Errors::

    EmulatorError              an emulation that cannot be; `where`, `expected` and `got` say what
    ├── PolicyError            no such policy, or none at all
    └── WrongWorldError        the server does not serve the catalogue of the world that the users live in
"""

from __future__ import annotations

__all__ = ["EmulatorError", "PolicyError", "WrongWorldError"]


class EmulatorError(ValueError):
    """An emulation that cannot be."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        super().__init__(f"{where}: expected {expected}, got {got}")
        self.where, self.expected, self.got = where, expected, got


class PolicyError(EmulatorError):
    """No such policy, or none at all."""


class WrongWorldError(EmulatorError):
    """The server does not serve the catalogue of the world that the users live in."""
