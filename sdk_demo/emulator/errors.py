"""Errors of an emulation, besides those of the device SDK and of the world.

Errors::

    MismatchError (export.errors)
    └── EmulatorError          arguments that no emulation can run with
        ├── PolicyError        an unknown policy, no policy, or one that the bundle does not suit
        └── WrongWorldError    the server does not serve the catalogue of the world that the users live in
"""

from __future__ import annotations

from pocketrank.device.contract import MismatchError

__all__ = ["EmulatorError", "PolicyError", "WrongWorldError"]


class EmulatorError(MismatchError, ValueError):
    """Arguments that no emulation can run with."""


class PolicyError(EmulatorError):
    """An unknown policy, no policy, or one that the bundle does not suit."""


class WrongWorldError(EmulatorError):
    """The server does not serve the catalogue of the world that the users live in."""
