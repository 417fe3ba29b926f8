"""Configuration of tokens that are bound to one user, apart from `user_tokens`, whose libraries few servers need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["UserKeysConfig"]


@dataclass(frozen=True)
class UserKeysConfig:
    """The keys that users' tokens are verified by, and what else a token must say."""

    file: Path
    """JSON Web Key Set, readable by the owner only."""
    audience: str | None = None
    """Value that `aud` must hold. With None a token with an audience is refused, because it is meant for somebody else."""
    issuer: str | None = None
    """Value that `iss` must be. None accepts any."""
    lifetime_max_s: float = 86_400.0
    """Longest time until a token's expiry. A token cannot be revoked, only its key can."""
    leeway_s: float = 30.0
    """Difference between the clocks of the backend and the server that is forgiven."""
    app_tokens: bool = False
    """Whether tokens of the file of tokens with the scope `device` are accepted as well. They speak for any user, so they are
    for a gateway that checks the users itself."""
