"""One user's session on a device.

`session` is the thread-safe API, and `feed` what it guards. What a session keeps is in `held_page`, `shown_items` and
`session_models`; how it orders, in `ordering`; which models come next, in `next_models`; what it sends, in `exchange`. `config`
has its options, and `counters` what it counts.

A module belongs here when it is about one session at a time. What sessions share, such as rankers, stores and strategies, has
folders of its own.
"""

from pocketrank.device.session.config import RefillConfig, SessionConfig
from pocketrank.device.session.counters import Counters
from pocketrank.device.session.session import FeedSession, Refill

__all__ = ["Counters", "FeedSession", "Refill", "RefillConfig", "SessionConfig"]
