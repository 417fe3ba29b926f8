"""Whether a step is up to date: its command line and the contents of its inputs are what they were when it last finished."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from os.path import normpath
from pathlib import Path
from typing import Any

from pocketrank.sdk_demo.workflow.errors import StepError
from pocketrank.sdk_demo.workflow.flow import Flow, Step, within

__all__ = ["StepInputs"]

_File = list[Any]
"""Time of change in ns, size in bytes, MD5 of the contents."""


class StepInputs:
    """Command line and inputs of a step, beside those of its last finish."""

    def __init__(self, flow: Flow, step: Step) -> None:
        self.step, self._folder, self._line = step, flow.folder, step.line()
        self._reads, self._writes = flow.inputs(step), step.outputs()
        self._files: dict[str, _File] = {}

    def values(self) -> dict[str, Any]:
        """Return what is to be kept of a finish. The contents are those of before the step ran."""
        return {"line": self._line, "files": self._files}

    def reason(self, values: Mapping[str, Any]) -> str | None:
        """Return why the step has to run, None when it is up to date. `values` are those of its last finish, empty without one.

        Raises `StepError` for an input that is not there.
        """
        before: Mapping[str, _File] = values.get("files", {})
        self._files = {name: _state(self._folder / name, before.get(name)) for name in self._names()}
        if not values:
            return "not finished yet"
        if values["line"] != self._line:
            return "other arguments or options"
        if self.step.always:
            return "always"
        if missing := next((path for path in self._writes if not (self._folder / path).exists()), None):
            return f"{missing} is missing"
        for name in sorted(before.keys() | self._files.keys()):
            if name not in before or name not in self._files:
                return f"{name} is {'new' if name in self._files else 'gone'}"
            if self._files[name][2] != before[name][2]:
                return f"{name} changed"
        return None

    def _names(self) -> Iterator[str]:
        """Yield the files that the step reads, those in folders too, relative to the folder of the workflow."""
        for read in self._reads:
            path = self._folder / read
            if path.is_file():
                yield read
            elif path.is_dir():
                for file in path.rglob("*"):
                    name = normpath(Path(read) / file.relative_to(path))
                    if file.is_file() and not within(name, self._writes):
                        yield name
            else:
                raise StepError(self.step.name, f"the file or folder {read}", "none")


def _state(path: Path, before: _File | None) -> _File:
    status = path.stat()
    if before and before[:2] == [status.st_mtime_ns, status.st_size]:
        return before
    with path.open("rb") as file:
        return [status.st_mtime_ns, status.st_size, hashlib.file_digest(file, "md5").hexdigest()]
