"""What a device installs: a folder with models, their feature spec, and a manifest that vouches for every file.

Format. The folder MUST hold `manifest.json` (`BundleManifest`), which MUST list every file that a reader uses, with its size
and SHA-256. A path MUST be relative, use `/`, and stay inside the folder without `..` or symbolic links. The spec MUST be one
of the listed files; a model is one (or, for Core ML, a folder of them). `personal` MUST adapt tasks of the spec only. A reader
MUST check all of that before it opens a model, and MAY ignore files that are not listed. A writer MUST write `manifest.json`
last. Graphs of one form, format and precision are a model of their own for each `group`: a reader MUST NOT mix them.

Errors::

    BundleError                a bundle that cannot be used; says expected, got, and where
    ├── CorruptBundleError     a manifest, spec or file that is missing, cut, changed or malformed
    ├── UnsafePathError        a path that leaves the folder
    ├── BundleVersionError     written for another version of this SDK
    ├── ExpiredBundleError     its time is over
    └── NoSuchModelError       no model of the form, format and precision asked for
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from device.codec import from_json, to_json
from device.contract import (
    BundleManifest,
    ContractError,
    FeatureSpec,
    FileEntry,
    Form,
    Format,
    Group,
    GroupRule,
    ModelEntry,
    PagingModel,
    PersonalConfig,
    Precision,
    Stage,
    VersionError,
)
from device.features import check_spec
from device.personal import PersonalError, PersonalLayer, group

__all__ = [
    "MANIFEST",
    "SPEC",
    "Bundle",
    "BundleError",
    "BundleVersionError",
    "CorruptBundleError",
    "ExpiredBundleError",
    "NoSuchModelError",
    "UnsafePathError",
    "check_path",
    "write_manifest",
]

MANIFEST = "manifest.json"
"""The manifest's path in a bundle."""
SPEC = "spec.json"
"""The spec's path in bundles written here."""

_TEXT_MAX = 4 << 20  # bytes of a manifest or spec; real ones have thousands

S = TypeVar("S", bound=msgspec.Struct)


class BundleError(ValueError):
    """A bundle that cannot be used. `where` is a path, `expected` and `got` say what."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        super().__init__(f"{where}: expected {expected}, got {got}")
        self.where, self.expected, self.got = where, expected, got


class CorruptBundleError(BundleError):
    """A manifest, spec or file that is missing, cut, changed or malformed."""


class UnsafePathError(BundleError):
    """A path that leaves the folder."""


class BundleVersionError(BundleError):
    """A manifest or spec of a version that this SDK does not know."""


class ExpiredBundleError(BundleError):
    """The bundle's time is over."""


class NoSuchModelError(BundleError):
    """The bundle has no model of the form, format and precision asked for."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was found as its manifest says."""

    folder: Path
    manifest: BundleManifest
    spec: FeatureSpec

    @classmethod
    def open(cls, folder: Path, *, now_ms: int | None = None) -> Bundle:
        """Read and check the bundle in `folder`. `now_ms` is the time to hold its expiry to (default: this machine's).

        Raises `BundleError`; nothing of a bundle that fails is used.
        """
        manifest = _read(folder / MANIFEST, BundleManifest)
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        if manifest.expires_ms is not None and now_ms >= manifest.expires_ms:
            raise ExpiredBundleError(str(folder), f"a time before {manifest.expires_ms} ms", f"{now_ms} ms")
        listed: set[str] = set()
        for entry in manifest.files:
            if entry.path in listed or entry.path == MANIFEST:
                raise CorruptBundleError(str(folder / MANIFEST), "each file listed once", f"`{entry.path}`")
            listed.add(entry.path)
            _check_file(folder, entry)
        if manifest.spec not in listed:
            raise CorruptBundleError(str(folder / MANIFEST), "a listed file as the spec", f"`{manifest.spec}`")
        for model in manifest.models:
            size = sum(e.bytes for e in manifest.files if e.path == model.path or e.path.startswith(model.path + "/"))
            if size == 0 or size != model.bytes:
                raise CorruptBundleError(str(folder / model.path), f"{model.bytes} bytes of listed files", f"{size}")
        spec = _read(folder / manifest.spec, FeatureSpec)
        try:
            check_spec(spec)
        except ContractError as err:
            raise CorruptBundleError(str(folder / manifest.spec), "a spec that a device can follow", str(err)) from err
        _check_personal(folder, manifest.personal, spec)
        return cls(folder, manifest, spec)

    @property
    def split_version(self) -> str:
        """That of the pages whose vectors the split models accept."""
        return self.manifest.split_version

    def group(self, events_seen: int) -> Group | None:
        """The group, by the manifest's rule, of a user of whom the app remembers `events_seen` events; None without a rule."""
        return None if self.manifest.groups is None else group(events_seen, self.manifest.groups)

    def personal(self, user_id: int, state: bytes = b"") -> PersonalLayer | None:
        """The user's own last layer over this bundle's models, None where the manifest has nothing adapt.

        It knows what it was when it gave `state`. Where that cannot be used (none yet, damaged, another user's or bundle's)
        the layer is a new one, which has learned from 0 `events` and is the shipped model.
        """
        config = self.manifest.personal
        if config is None or not config.tasks:
            return None
        name = f"{self.manifest.name}/{self.manifest.serial}"
        try:
            return PersonalLayer.restore(state, self.spec.tasks, bundle=name, user_id=user_id, config=config)
        except PersonalError:
            return PersonalLayer(self.spec.tasks, bundle=name, user_id=user_id, config=config)

    def forms(self, format: Format, precision: Precision = "fp32", group: Group | None = None) -> tuple[Form, ...]:
        """The forms there is a whole model of."""
        forms = dict.fromkeys(m.form for m in self.manifest.models)
        return tuple(form for form in forms if "whole" in self.stages(form, format, precision, group))

    def stages(
        self, form: Form, format: Format, precision: Precision = "fp32", group: Group | None = None
    ) -> dict[Stage, Path]:
        """The paths of all graphs of a form, the whole model's and its stages': a group's own where there is any of them, else
        those for all."""
        key = form, format, precision
        found = [m for m in self.manifest.models if (m.form, m.format, m.precision) == key]
        served = [m for m in found if m.group == group] or [m for m in found if m.group is None]
        return {m.stage: self.folder / m.path for m in served}

    def model(
        self,
        form: Form,
        format: Format,
        precision: Precision = "fp32",
        stage: Stage = "whole",
        group: Group | None = None,
    ) -> Path:
        """The path of a model or of a stage of it, as `stages` has it. Raises `NoSuchModelError`."""
        if (path := self.stages(form, format, precision, group).get(stage)) is not None:
            return path
        have = ", ".join(_called(m.form, m.format, m.precision, m.stage, m.group) for m in self.manifest.models) or "none"
        raise NoSuchModelError(str(self.folder), f"a model {_called(form, format, precision, stage, group)}", have)


def _called(form: Form, format: Format, precision: Precision, stage: Stage, group: Group | None) -> str:
    return " ".join([form, format, precision, *([] if stage == "whole" else [stage]), *([] if group is None else [group])])


def _check_personal(folder: Path, config: PersonalConfig | None, spec: FeatureSpec) -> None:
    if config is not None and (unknown := config.tasks.keys() - set(spec.tasks)):
        raise CorruptBundleError(str(folder / MANIFEST), f"`personal` tasks among {list(spec.tasks)}", str(sorted(unknown)))


def write_manifest(
    folder: Path,
    *,
    name: str,
    serial: int,
    split_version: str,
    spec: FeatureSpec,
    models: Iterable[ModelEntry],
    created_ms: int,
    expires_ms: int | None = None,
    personal: PersonalConfig | None = None,
    groups: GroupRule | None = None,
    paging: PagingModel | None = None,
) -> BundleManifest:
    """Make the files in `folder` a bundle: write `spec.json`, then the manifest over all files, each at once or not at all.

    The models' `bytes` are counted here, whatever the entries say. Raises `BundleError` for a model that is not there, a
    symbolic link, or a spec or a `personal` that a device cannot follow; an earlier manifest then stays as it was.
    """
    try:
        check_spec(spec)
    except ContractError as err:
        raise CorruptBundleError(str(folder / SPEC), "a spec that a device can follow", str(err)) from err
    _check_personal(folder, personal, spec)
    _replace(folder / SPEC, to_json(spec))
    files = tuple(_entry(folder, path) for path in sorted(_walk(folder)))
    counted = []
    for model in models:
        size = sum(f.bytes for f in files if f.path == model.path or f.path.startswith(model.path + "/"))
        if size == 0:
            raise CorruptBundleError(str(folder / model.path), "a model's file or folder", "nothing")
        counted.append(msgspec.structs.replace(model, bytes=size))
    manifest = BundleManifest(
        name=name,
        serial=serial,
        created_ms=created_ms,
        expires_ms=expires_ms,
        split_version=split_version,
        spec=SPEC,
        files=files,
        models=tuple(counted),
        personal=personal,
        groups=groups,
        paging=paging,
    )
    _replace(folder / MANIFEST, msgspec.json.format(to_json(manifest), indent=2))
    return manifest


def check_path(path: str) -> PurePosixPath:
    """`path` of a manifest as parts that stay inside the bundle. Raises `UnsafePathError`."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(c in path for c in "\\:\0") or len(path) > 1024:
        raise UnsafePathError(repr(path[:1024]), "a relative path of plain names", repr(path[:1024]))
    return PurePosixPath(*parts)


def _check_file(folder: Path, entry: FileEntry) -> None:
    at = folder
    for part in check_path(entry.path).parts:
        at /= part
        if at.is_symlink():
            raise UnsafePathError(str(at), "a file or folder", "a symbolic link")
    if not at.is_file():
        raise CorruptBundleError(str(at), "a file", "none")
    if (size := at.stat().st_size) != entry.bytes:
        raise CorruptBundleError(str(at), f"{entry.bytes} bytes", f"{size}")
    if (digest := _sha256(at)) != entry.sha256.lower():
        raise CorruptBundleError(str(at), f"SHA-256 {entry.sha256[:64]}", digest)


def _read(path: Path, struct: type[S]) -> S:
    try:
        with path.open("rb") as file:
            data = file.read(_TEXT_MAX + 1)
    except OSError as err:
        raise CorruptBundleError(str(path), "a readable file", err.strerror or type(err).__name__) from err
    if len(data) > _TEXT_MAX:
        raise CorruptBundleError(str(path), f"at most {_TEXT_MAX} bytes", "more")
    try:
        return from_json(data, struct)
    except VersionError as err:
        raise BundleVersionError(str(path), err.expected, err.got) from err
    except ContractError as err:
        raise CorruptBundleError(str(path), f"{err.expected} at `{err.path}`", err.got) from err


def _walk(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise UnsafePathError(str(path), "a file or folder", "a symbolic link")
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not name.endswith(".tmp"):
            yield name


def _entry(folder: Path, path: str) -> FileEntry:
    check_path(path)
    return FileEntry(path=path, bytes=(folder / path).stat().st_size, sha256=_sha256(folder / path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(path.name + ".tmp")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
