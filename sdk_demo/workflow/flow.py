"""The workflow file: a list of steps, each a command of `pocketrank` with its arguments and options.

::

    [[step]]
    name = "train"
    command = "train"
    options = { data = "log", out = "runs/first", seeds = 3 }

    [[step]]
    name = "evaluate"
    command = "evaluate"
    arguments = ["runs/first"]
    options = { json = "report.json" }

Paths are relative to the folder of the file. What a step writes is its `--out`, its `--json` and its `--page`, and the paths
that `writes` names. What it reads is every other argument and option that names a file or a folder, also one that an earlier
step writes, and the paths that `reads` names. A step runs after those whose outputs it reads, and those that `after` names.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, time
from os.path import normpath
from pathlib import Path
from typing import Any

import msgspec

from pocketrank.sdk_demo.workflow.errors import FlowFileError

__all__ = ["Flow", "Step", "within"]

_OUTPUT_OPTIONS = ("out", "json", "page")
"""Options by which all commands name what they write."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One command of a workflow."""

    name: str
    """Unique in its file."""
    command: str
    """Words of the command, such as `train` or `runs activate`."""
    arguments: tuple[str | int | float, ...] = ()
    options: dict[str, Any] = {}
    """Options by name, `test_from` for `--test-from`. True stands for the flag, false for none; a list repeats the option."""
    reads: tuple[str, ...] = ()
    """Further paths that the command reads."""
    writes: tuple[str, ...] = ()
    """Further paths that the command writes."""
    after: tuple[str, ...] = ()
    """Earlier steps that must be over first, although nothing of theirs is read."""
    always: bool = False
    """Whether the step runs each time."""

    def line(self) -> list[str]:
        """Return the command line, without `pocketrank`. Raises ValueError for an option that is no plain value."""
        words = [*self.command.split(), *map(str, self.arguments)]
        for name, value in self.options.items():
            option = f"--{name.replace('_', '-')}"
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, bool):
                    words += [option] if one else []
                elif isinstance(one, str | int | float | date | time):
                    words += [option, str(one)]
                else:
                    raise ValueError(f"Expected a text, a number, a date, true, false or a list of them, got {one!r}")
        return words

    def outputs(self) -> tuple[str, ...]:
        """Return the paths that the step writes."""
        named = (self.options.get(name) for name in _OUTPUT_OPTIONS)
        return tuple(map(normpath, (*self.writes, *(path for path in named if isinstance(path, str) and path != "-"))))

    def inputs(self, folder: Path, earlier: tuple[str, ...]) -> tuple[str, ...]:
        """Return the paths that the step reads. `earlier` are those that earlier steps write."""
        values = [value for name, value in self.options.items() if name not in _OUTPUT_OPTIONS]
        texts = [text for value in (*self.arguments, *values) for text in _texts(value)]
        found = [text for text in map(normpath, texts) if within(text, earlier) or (folder / text).exists()]
        # What it also writes does not count: it would not be up to date for what it did itself.
        return tuple(dict.fromkeys(path for path in (*map(normpath, self.reads), *found) if not within(path, self.outputs())))


def within(path: str, folders: tuple[str, ...]) -> bool:
    """Return whether `path` is one of `folders` or below one of them. All are normalised."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _texts(value: object) -> Iterator[str]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and one:
            yield one


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    step: tuple[Step, ...]


@dataclass(frozen=True)
class Flow:
    """A workflow file that was read."""

    file: Path
    steps: tuple[Step, ...]

    @classmethod
    def open(cls, file: Path) -> Flow:
        """Read a file. Raises `FlowFileError`."""
        try:
            tables = tomllib.loads(file.read_text("utf-8-sig"))  # some editors begin a file with the mark of its encoding
        except OSError as error:
            raise FlowFileError(file, "$", f"Expected a workflow file, got: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise FlowFileError(file, "$", f"Expected TOML, got: {error}") from None
        try:
            flow = cls(file, msgspec.convert(tables, _File).step)
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at `")
            raise FlowFileError(file, where.rstrip("`") or "$", what) from None
        flow._check()
        return flow

    @property
    def folder(self) -> Path:
        """Folder that paths are relative to."""
        return self.file.parent

    def inputs(self, step: Step) -> tuple[str, ...]:
        """Return the paths that a step reads."""
        return step.inputs(self.folder, tuple(path for one in self._before(step) for path in one.outputs()))

    def needs(self, step: Step) -> tuple[str, ...]:
        """Return the names of the earlier steps that must be over first: those of `after`, and those whose outputs it reads."""
        reads = self.inputs(step)
        makers = [
            one.name
            for one in self._before(step)
            if any(within(path, one.outputs()) or within(out, (path,)) for path in reads for out in one.outputs())
        ]
        return tuple(dict.fromkeys((*step.after, *makers)))

    def _before(self, step: Step) -> tuple[Step, ...]:
        return self.steps[: self.steps.index(step)]

    def _check(self) -> None:
        if not self.steps:
            raise FlowFileError(self.file, "$.step", "Expected at least one step, got none")
        names: list[str] = []
        for i, step in enumerate(self.steps):
            where = f"$.step[{i}]"
            if not _NAME.fullmatch(step.name):
                raise FlowFileError(
                    self.file, f"{where}.name", f"Expected letters, digits, `_`, `-` and `.`, got `{step.name}`"
                )
            if step.name in names:
                raise FlowFileError(self.file, f"{where}.name", f"Expected names that differ, got `{step.name}` twice")
            if not step.command.split():
                raise FlowFileError(self.file, f"{where}.command", "Expected a command such as `train`, got none")
            if unknown := [name for name in step.after if name not in names]:
                known = ", ".join(names) or "there is none"
                raise FlowFileError(self.file, f"{where}.after", f"Expected an earlier step ({known}), got `{unknown[0]}`")
            try:
                step.line()
            except ValueError as error:
                raise FlowFileError(self.file, f"{where}.options", str(error)) from None
            names.append(step.name)
