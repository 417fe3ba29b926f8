"""The simulated world: users with a hidden, drifting state, a catalogue, logs, live sessions and the oracle's knowledge.

Nothing in here is a real user. `World.simulate_log` writes the schema that models train on; `World.session` is one user to
be driven impression by impression; `UserSession.probabilities` is what only an oracle knows.
"""

from pocketrank.sdk_demo.world.catalogue import Items
from pocketrank.sdk_demo.world.config import DEFAULT_WORLD, WorldConfig
from pocketrank.sdk_demo.world.errors import SessionOverError, UnknownIdError, WorldConfigError, WorldError
from pocketrank.sdk_demo.world.policy import LoggingPolicy
from pocketrank.sdk_demo.world.response import TASKS
from pocketrank.sdk_demo.world.session import Outcome, UserSession
from pocketrank.sdk_demo.world.users import Users
from pocketrank.sdk_demo.world.variants import VARIANTS, Variant
from pocketrank.sdk_demo.world.world import World

__all__ = [
    "DEFAULT_WORLD",
    "TASKS",
    "VARIANTS",
    "Items",
    "LoggingPolicy",
    "Outcome",
    "SessionOverError",
    "UnknownIdError",
    "UserSession",
    "Users",
    "Variant",
    "World",
    "WorldConfig",
    "WorldConfigError",
    "WorldError",
]
