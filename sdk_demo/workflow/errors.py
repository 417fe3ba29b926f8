"""Errors of workflows; the tree is in the package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FlowBusyError", "FlowError", "FlowFileError", "StepError"]


class FlowError(ValueError):
    """A workflow that cannot be run."""


class FlowFileError(FlowError):
    """The file is no workflow. `where` is the place in it."""

    def __init__(self, file: Path, where: str, message: str) -> None:
        super().__init__(f"{message} - at `{where}` in {file}")
        self.file, self.where, self.message = file, where, message


class FlowBusyError(FlowError):
    """Another run of the same workflow, or a step that a killed one left behind, is at work."""


class StepError(FlowError):
    """A step failed, or has an input that is not there."""

    def __init__(self, step: str, expected: str, got: str) -> None:
        super().__init__(f"Expected {expected}, got {got} - at step `{step}`")
        self.step, self.expected, self.got = step, expected, got
