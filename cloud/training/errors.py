"""Errors of training and of the runs that it leaves."""

from __future__ import annotations

__all__ = ["RunError"]


class RunError(ValueError):
    """No run, an unfinished one, or one of another format."""
