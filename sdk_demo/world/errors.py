"""What can go wrong in the simulated world.

Errors::

    WorldError                 anything the simulated world refuses; `path` says where, `expected` and `got` say what
    ├── WorldConfigError       a world file that is missing, no TOML, or has a wrong key, type or value
    ├── UnknownIdError         an item or user that this world does not have
    └── SessionOverError       something was shown to a user who has left
"""

from __future__ import annotations

__all__ = ["SessionOverError", "UnknownIdError", "WorldConfigError", "WorldError"]


class WorldError(ValueError):
    """The simulated world refuses something. `path` is a key path (`$.users.count`) or the name of an argument."""

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(f"Expected {expected}, got {got} - at `{path}`")
        self.path, self.expected, self.got = path, expected, got


class WorldConfigError(WorldError):
    """A world file that is missing, is no TOML, or has a wrong key, type or value."""


class UnknownIdError(WorldError):
    """An item or user id that this world does not have."""


class SessionOverError(WorldError):
    """Something was shown to a user who has left."""
