"""The bundle that a device installs: a folder of models, their feature spec, and a manifest with the digest of every file.

Format. The folder MUST hold `manifest.json` (`BundleManifest`), which MUST list every file that a reader uses, with its size
and SHA-256. A path MUST be relative, of plain ASCII names separated by `/`, and stay inside the folder without `..` or symbolic
links. The spec MUST be one of the listed files; a model is one (or, for Core ML, a folder of them). `personal` MUST adapt tasks
of the spec only. A reader MUST check all of that before it opens a model, and MAY ignore files that are not listed. A writer
MUST write `manifest.json` last. Graphs of one form, format and precision are a separate model for each `group`: a reader
MUST NOT mix them.

A signed bundle also has `manifest.sig` (`Signed`, without payload), the signatures over the bytes of `manifest.json`. A reader
that was given keys MUST check them before it reads the manifest. Errors are in `pocketrank.device.bundle.files`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pocketrank.device.bundle.files import (
    GOLDEN,
    MANIFEST,
    RELEASE,
    SIGNATURES,
    SPEC,
    TEXT_MAX,
    CorruptBundleError,
    ExpiredBundleError,
    UnsafePathError,
    check_file,
    check_path,
    check_paths,
    decode_json,
    read_bytes,
    read_file,
    sha256,
)
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.clock import wall_clock
from pocketrank.device.codec import from_msgpack, to_json
from pocketrank.device.contract import (
    BundleManifest,
    ContractError,
    FeatureSpec,
    FileEntry,
    Form,
    Format,
    Golden,
    Group,
    GroupRule,
    ModelEntry,
    PagingModel,
    PersonalConfig,
    Precision,
    Stage,
)
from pocketrank.device.files import TEMPORARY, write_atomically
from pocketrank.device.model.features import check_spec
from pocketrank.device.model.personal import PersonalError, PersonalLayer, group
from pocketrank.device.runtimes.base import ModelFile

__all__ = ["Bundle", "write_atomically", "write_manifest"]

_GOLDEN_MAX = 16 << 20  # bytes; a few cases of a page have hundreds of thousands
_UNLISTED = (MANIFEST, SIGNATURES, RELEASE)  # files of the folder that the manifest does not list


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were all checked against its manifest."""

    folder: Path
    manifest: BundleManifest
    spec: FeatureSpec

    @classmethod
    def open(cls, folder: Path, *, keys: TrustedKeys | None = None, now_ms: int | None = None) -> Bundle:
        """Read and check the bundle in `folder`. It must not be expired at `now_ms` (default: this machine's time).

        With `keys` it must be signed by them; without keys any bundle is trusted, which is for development. Raises
        `BundleError`; nothing of a bundle that fails is used.
        """
        # The signatures come first: no byte of a manifest is interpreted before it is trusted.
        text = read_bytes(folder / MANIFEST)
        if keys is not None:
            keys.verify_beside("manifest", text, folder / SIGNATURES)
        manifest = decode_json(text, BundleManifest, str(folder / MANIFEST))
        now_ms = wall_clock() if now_ms is None else now_ms
        if manifest.expires_ms is not None and now_ms >= manifest.expires_ms:
            raise ExpiredBundleError(str(folder), f"a time before {manifest.expires_ms} ms", f"{now_ms} ms")
        # Check the files, and then that the spec and the models are among them.
        listed = {entry.path: entry for entry in manifest.files}
        check_paths((entry.path for entry in manifest.files), str(folder / MANIFEST))
        for entry in manifest.files:
            check_file(folder, entry)
        if manifest.spec not in listed:
            raise CorruptBundleError(str(folder / MANIFEST), "a listed file as the spec", f"`{manifest.spec}`")
        for model in manifest.models:
            size = sum(e.bytes for e in manifest.files if e.path == model.path or e.path.startswith(model.path + "/"))
            if size == 0 or size != model.bytes:
                raise CorruptBundleError(str(folder / model.path), f"{model.bytes} bytes of listed files", f"{size}")
        text = read_file(folder, listed[manifest.spec], TEXT_MAX)
        spec = decode_json(text, FeatureSpec, str(folder / manifest.spec))
        _check_spec(folder, manifest.spec, spec, manifest.personal)
        return cls(folder, manifest, spec)

    @property
    def split_version(self) -> str:
        """The split version of the pages whose vectors the split models accept."""
        return self.manifest.split_version

    def golden(self) -> Golden | None:
        """Return the recorded scores of its models, None when the bundle has none. Raises `CorruptBundleError`."""
        entry = next((entry for entry in self.manifest.files if entry.path == GOLDEN), None)
        if entry is None:
            return None
        try:
            return from_msgpack(read_file(self.folder, entry, _GOLDEN_MAX), Golden)
        except ContractError as err:
            raise CorruptBundleError(str(self.folder / GOLDEN), f"{err.expected} at `{err.path}`", err.got) from err

    def read_model(self, path: Path) -> ModelFile:
        """Return the model in the file `path` of `stages`, and what it may refer to, checked against the manifest again.

        The bytes that a runtime opens are those that were checked, whoever writes to the folder meanwhile. They take their size
        in memory until the runtime has made its own copy. Raises `CorruptBundleError`.
        """
        data, beside = None, {}
        models = [self.folder / model.path for model in self.manifest.models]
        for entry in self.manifest.files:
            file = self.folder / entry.path
            if file == path:
                data = read_file(self.folder, entry)
            elif file.is_relative_to(path.parent) and not any(file.is_relative_to(model) for model in models):
                beside[file.relative_to(path.parent).as_posix()] = read_file(self.folder, entry)
        if data is None:
            raise CorruptBundleError(str(path), "a model that the manifest lists as one file", "another path")
        return ModelFile(data, beside)

    def group(self, events_seen: int) -> Group | None:
        """Return the group of a user with `events_seen` remembered events, by the manifest's rule; None without a rule."""
        return None if self.manifest.groups is None else group(events_seen, self.manifest.groups)

    def personal(self, user_id: int | str, state: bytes = b"") -> PersonalLayer | None:
        """Return the user's own last layer over this bundle's models, None where the manifest lets no task adapt.

        The layer continues from `state`, which an earlier one returned. Where that cannot be used (none yet, damaged, another
        user's or bundle's) the layer is new: it has learned from 0 `events` and scores as the shipped model does.
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
        """Return the forms that have a whole model."""
        forms = dict.fromkeys(m.form for m in self.manifest.models)
        return tuple(form for form in forms if "whole" in self.stages(form, format, precision, group))

    def stages(
        self, form: Form, format: Format, precision: Precision = "fp32", group: Group | None = None
    ) -> dict[Stage, Path]:
        """Return the paths of a form's graphs, by stage: those of the group if it has any, else those for all users."""
        key = form, format, precision
        found = [m for m in self.manifest.models if (m.form, m.format, m.precision) == key]
        of_group = [m for m in found if m.group == group] or [m for m in found if m.group is None]
        return {m.stage: self.folder / m.path for m in of_group}


def _check_spec(folder: Path, name: str, spec: FeatureSpec, personal: PersonalConfig | None) -> None:
    try:
        check_spec(spec)
    except ContractError as err:
        raise CorruptBundleError(str(folder / name), "a spec that a device can use", str(err)) from err
    if personal is not None and (unknown := personal.tasks.keys() - set(spec.tasks)):
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
    app: str = "",
    channel: str = "",
) -> BundleManifest:
    """Make the files in `folder` a bundle: write `spec.json`, then the manifest over all files, each atomically.

    The `bytes` of `models` are ignored and counted here. Only devices of this `app` and `channel` will use the bundle. Raises
    `BundleError` for a model that does not exist, a symbolic link, or a spec or a `personal` that a device cannot use; an
    earlier manifest then stays as it was.
    """
    _check_spec(folder, SPEC, spec, personal)
    write_atomically(folder / SPEC, to_json(spec))
    files = tuple(_entry(folder, path) for path in sorted(_walk(folder)))
    counted = []
    for model in models:
        size = sum(f.bytes for f in files if f.path == model.path or f.path.startswith(model.path + "/"))
        if size == 0:
            raise CorruptBundleError(str(folder / model.path), "a model's file or folder", "nothing")
        counted.append(msgspec.structs.replace(model, bytes=size))
    manifest = BundleManifest(
        app=app or msgspec.UNSET,
        channel=channel or msgspec.UNSET,
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
    write_atomically(folder / MANIFEST, msgspec.json.format(to_json(manifest), indent=2))
    return manifest


def _walk(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise UnsafePathError(str(path), "a file or folder", "a symbolic link")
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in _UNLISTED and not name.endswith(TEMPORARY):
            yield name


def _entry(folder: Path, path: str) -> FileEntry:
    check_path(path)
    return FileEntry(path=path, bytes=(folder / path).stat().st_size, sha256=sha256(folder / path))
