"""The simulated world: a catalogue, users with a hidden, drifting state, logs of their impressions, and live sessions.

`World.simulate_log` returns a log in the schema that models train on; `World.session` is one user who watches impression by
impression; `UserSession.probabilities` are true probabilities, which only an oracle knows.

What belongs here: everything that users do. Servers, models and phones see only logs and events.
"""

from pocketrank.sdk_demo.world.catalogue import Items
from pocketrank.sdk_demo.world.config import DEFAULT_WORLD, WorldConfig
from pocketrank.sdk_demo.world.errors import SessionOverError, UnknownIdError, WorldConfigError, WorldError
from pocketrank.sdk_demo.world.policy import LoggingPolicy
from pocketrank.sdk_demo.world.response import TASKS
from pocketrank.sdk_demo.world.session import Outcome, UserSession
from pocketrank.sdk_demo.world.simulate import TASK_WEIGHTS
from pocketrank.sdk_demo.world.users import Users
from pocketrank.sdk_demo.world.variants import VARIANTS, Variant
from pocketrank.sdk_demo.world.world import World

__all__ = [
    "DEFAULT_WORLD",
    "TASKS",
    "TASK_WEIGHTS",
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
