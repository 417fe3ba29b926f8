"""Emulated phones: simulated users swipe through a live server's pages with the real device SDK.

Start at `run.play`; `run.emulate` adds the report. `policies` is who decides what is shown, `phone` is one session on one
phone, `fleet` runs many at the same time, `figures` turns what happened into numbers with intervals.
"""

from pocketrank.sdk_demo.emulator.errors import EmulatorError, PolicyError, WrongWorldError
from pocketrank.sdk_demo.emulator.policies import DEFAULT_POLICIES, POLICIES
from pocketrank.sdk_demo.emulator.run import Played, emulate, play

__all__ = ["DEFAULT_POLICIES", "POLICIES", "EmulatorError", "Played", "PolicyError", "WrongWorldError", "emulate", "play"]
