"""HEAD on every route that answers GET (RFC 9110, 9.3.2), which FastAPI's routes refuse.

The routes see a GET. The server of the process, which knows the request as it came, sends the head of the answer alone.
"""

from __future__ import annotations

from starlette.types import Scope

__all__ = ["head_as_get", "is_head"]

_KEY = "pocketrank.head"


def head_as_get(scope: Scope) -> Scope:
    """Return the scope of a GET for that of a HEAD, and any other scope as it is."""
    return {**scope, "method": "GET", _KEY: True} if scope["method"] == "HEAD" else scope


def is_head(scope: Scope) -> bool:
    """Whether a GET was a HEAD, so that its body need not be made."""
    return _KEY in scope
