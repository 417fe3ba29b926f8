"""Emulated phones: simulated users swipe through the pages of a live server with the real device SDK.

Start at `run.play`; `run.emulate` adds the report. `policies` decide what is shown, `phone` is one session on one phone,
`fleet` runs many phones at the same time, `figures` computes means and intervals from the records of their sessions.

What belongs here: code between the simulated world and the device SDK. Nothing here may reach around the SDK's public names.
"""

from pocketrank.sdk_demo.emulator.errors import EmulatorError, PolicyError, WrongWorldError
from pocketrank.sdk_demo.emulator.policies import DEFAULT_POLICIES, POLICIES
from pocketrank.sdk_demo.emulator.run import EmulationResult, emulate, play

__all__ = [
    "DEFAULT_POLICIES",
    "POLICIES",
    "EmulatorError",
    "EmulationResult",
    "PolicyError",
    "WrongWorldError",
    "emulate",
    "play",
]
