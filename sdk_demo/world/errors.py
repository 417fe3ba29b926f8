"""Errors of the simulated world.

Errors::

    MismatchError (export.errors)
    └── WorldError             a value that the simulated world rejects; `where` is a key path or the name of an argument
        ├── WorldConfigError   a world file that is missing, not TOML, or has a wrong key, type or value
        ├── UnknownIdError     the id of an item or user that this world does not have
        └── SessionOverError   an item was shown to a user who had left
"""

from __future__ import annotations

from pocketrank.device.contract import MismatchError

__all__ = ["SessionOverError", "UnknownIdError", "WorldConfigError", "WorldError"]


class WorldError(MismatchError, ValueError):
    """A value that the simulated world rejects. `where` is a key path (`$.users.count`) or the name of an argument."""


class WorldConfigError(WorldError):
    """A world file that is missing, not TOML, or has a wrong key, type or value."""


class UnknownIdError(WorldError):
    """The id of an item or user that this world does not have."""


class SessionOverError(WorldError):
    """An item was shown to a user who had left."""
