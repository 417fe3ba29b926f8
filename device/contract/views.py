"""From how long a watch on an impression counts as an effective view or a long view."""

__all__ = ["EFFECTIVE_VIEW_MS", "LONG_VIEW_MS"]

EFFECTIVE_VIEW_MS = 7_000
"""An effective view is a watch of at least this many milliseconds, or of the whole item if that is shorter."""
LONG_VIEW_MS = 18_000
"""A long view is a watch of at least this many milliseconds, or of the whole item if that is shorter, as in KuaiRand."""
