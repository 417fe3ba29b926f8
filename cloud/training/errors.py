"""Errors of training and of the runs that it writes."""

from __future__ import annotations

__all__ = ["RunError"]


class RunError(ValueError):
    """The folder holds no run, an unfinished run, or a run of another format."""
