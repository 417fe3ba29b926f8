"""The runs that a team keeps, and which of them is active: the one that servers serve.

::

    FOLDER/NAME/               a run (`pocketrank.cloud.training.run`)
    FOLDER/active.json         all activations and rollbacks, oldest first; replaced as a whole

An activation makes a run the active one. A rollback takes the last activation back, so that the run before it is active again,
and the next rollback takes back the one before that. Nothing is ever removed from the list.

Errors::

    RunError                   the folder of a run holds none that is whole
    └── RegistryError          the registry cannot be read or written, or has no such run; says what to do
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from time import time_ns
from typing import Any, NamedTuple

import msgspec

from pocketrank.cloud.files import write_atomically
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.training.errors import RunError
from pocketrank.cloud.training.run import Run, RunRecord

__all__ = [
    "Activation",
    "ActiveRun",
    "FolderRegistry",
    "Listed",
    "RegistryError",
    "RunRegistry",
    "active_beside",
    "listed",
]

_FORMAT = 1


class RegistryError(RunError):
    """The registry cannot be read or written, or has no such run."""


class Activation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Entry of the list of activations."""

    run: str
    """Name of the run that is active from here on."""
    at_ms: int
    """When it was made, in milliseconds since the epoch."""
    rollback: bool = False
    """Whether the activation before was taken back."""


class ActiveRun(NamedTuple):
    """What a server should serve."""

    number: int
    """Number of the activation, which increases with each."""
    run: str
    """The active run."""
    former: tuple[str, ...]
    """Runs that were active before it and are not, the latest first."""


class Listed(NamedTuple):
    """A run of a registry, finished or not."""

    name: str
    record: RunRecord | None
    """None for one that is not whole."""
    metrics: dict[str, Any]
    """As `pocketrank evaluate` reports them; empty where there are none."""
    why_not: str
    """What is wrong with one that is not whole."""


def listed(name: str, folder: Path) -> Listed:
    """Return what is known of the run of this name in `folder`, whole or not."""
    try:
        record = Run.open(folder).record
    except RunError as error:
        return Listed(name, None, {}, str(error))
    try:
        metrics = msgspec.json.decode((folder / "metrics.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        metrics = {}
    return Listed(name, record, metrics, "")


class RunRegistry(ABC):
    """Runs by name, and the list of their activations. It can be pickled, as worker processes receive it."""

    folder: Path
    """Folder on this machine, in which a server keeps what belongs to no single run: its feedback log and uploaded bundles."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all runs, whole or not, sorted. Raises `RegistryError`."""

    @abstractmethod
    def open(self, name: str) -> Run:
        """Return a finished run, on this machine. Raises `RunError`, `RegistryError`."""

    @abstractmethod
    def add(self, run: Run) -> str:
        """Copy a finished run into the registry, under the name of its folder, which is returned. Raises `RegistryError`."""

    @abstractmethod
    def history(self) -> tuple[Activation, ...]:
        """Return all activations, oldest first. Raises `RegistryError`."""

    @abstractmethod
    def _append(self, make: Callable[[Sequence[Activation]], Activation]) -> Activation:
        """Append the activation that `make` returns for the history; nobody else appends meanwhile. Raises `RegistryError`."""

    @abstractmethod
    def listed(self, name: str) -> Listed:
        """Return what is known of a run. Raises `RegistryError`."""

    def active(self) -> ActiveRun | None:
        """Return the active run and those before it; None before the first activation. Raises `RegistryError`."""
        history = self.history()
        if not history:
            return None
        active = history[-1].run
        former = dict.fromkeys(one.run for one in reversed(history) if one.run != active)
        return ActiveRun(len(history), active, tuple(former))

    def activate(self, name: str) -> Activation:
        """Make a run the active one. A server that has it open opens it again if it was trained again since.

        Raises `RunError` for a run that is not whole, `PublishedError` for one whose cloud half is not, and `RegistryError`.
        """
        Published.open(self.open(name).published)
        return self._append(lambda history: Activation(run=name, at_ms=_now_ms()))

    def rollback(self) -> Activation:
        """Make the run active again that was so before the last activation.

        Raises `RegistryError` when there is none, and what `activate` raises.
        """

        def back(history: Sequence[Activation]) -> Activation:
            stack = _stack(history)
            if len(stack) < 2:
                got = f"only `{stack[0]}`" if stack else "none"
                raise RegistryError(f"Expected an activation to go back to, got {got} - at {self}. Activate a run by its name.")
            Published.open(self.open(stack[-2]).published)
            return Activation(run=stack[-2], at_ms=_now_ms(), rollback=True)

        return self._append(back)


def _stack(history: Sequence[Activation]) -> list[str]:
    """Return the runs of the activations that were not taken back, the active one last."""
    stack: list[str] = []
    for one in history:
        if one.rollback:
            stack.pop()
        elif stack[-1:] != [one.run]:
            stack.append(one.run)
    return stack


def _now_ms() -> int:
    return time_ns() // 1_000_000


class _File(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    history: tuple[Activation, ...]


class FolderRegistry(RunRegistry):
    """Runs in the folders of `folder`, as `pocketrank train --out FOLDER/NAME` writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "active.json"

    def __str__(self) -> str:
        return str(self.folder)

    def names(self) -> list[str]:
        """Return the names of all folders with a run, finished or not. Raises `RegistryError`."""
        try:
            found = [
                one
                for one in self.folder.iterdir()
                if (one.suffix != ".part" and (one / "run.json").is_file()) or (one / "started.json").is_file()
            ]
        except OSError as error:
            raise RegistryError(
                f"Expected a folder of runs, got: {error.strerror} - at {self.folder}. "
                "`pocketrank train --out FOLDER/NAME` writes one."
            ) from error
        return sorted(one.name for one in found)

    def open(self, name: str) -> Run:
        """Return a finished run. Raises `RunError`, `RegistryError`."""
        return Run.open(self._folder(name))

    def listed(self, name: str) -> Listed:
        """Return what is known of a run. Raises `RegistryError`."""
        return listed(name, self._folder(name))

    def _folder(self, name: str) -> Path:
        names = self.names()
        if name not in names:
            known = ", ".join(names) or "none"
            raise RegistryError(f"Expected one of the runs {known}, got `{name}` - at {self.folder}")
        return self.folder / name

    def add(self, run: Run) -> str:
        """Copy a run into the folder. Raises `RegistryError`."""
        name = run.folder.resolve().name
        part = self.folder / f"{name}.part"
        if (self.folder / name).exists():
            raise RegistryError(f"Expected a new name, got that of a run that is there: {name} - at {self}. Rename the folder.")
        try:
            shutil.rmtree(part, ignore_errors=True)  # of a copy that was killed
            shutil.copytree(run.folder, part, ignore=shutil.ignore_patterns("feedback.db*", "vectors", "bundles"))
            part.rename(self.folder / name)
        except OSError as error:
            raise RegistryError(f"Expected room for a copy of {run.folder}, got: {error} - at {self.folder}") from error
        return name

    def history(self) -> tuple[Activation, ...]:
        """Return all activations, oldest first. Raises `RegistryError`."""
        try:
            file = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError) as error:
            raise RegistryError(
                f"Expected a list of activations, got: {error} - at {self._path}. Remove the file and activate a run."
            ) from error
        if file.format != _FORMAT:
            raise RegistryError(
                f"Expected format {_FORMAT}, got {file.format} - at {self._path}. Install the version that wrote it."
            )
        return file.history

    def _append(self, make: Callable[[Sequence[Activation]], Activation]) -> Activation:
        from filelock import FileLock  # a training needs no lock, nor its library

        try:
            with FileLock(f"{self._path}.lock"):
                history = self.history()
                added = make(history)
                file = _File(format=_FORMAT, history=(*history, added))
                write_atomically(self._path, msgspec.json.format(msgspec.json.encode(file)))
        except OSError as error:
            raise RegistryError(f"Expected a folder that can be written, got: {error} - at {self.folder}") from error
        return added


def active_beside(folder: Path) -> str | None:
    """Return the active run of the folder of runs that the run in `folder` is in, if it is another one."""
    try:
        active = FolderRegistry(folder.resolve().parent).active()
    except RegistryError:
        return None
    return active.run if active is not None and active.run != folder.resolve().name else None
