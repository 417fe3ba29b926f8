"""Artifacts: the named tables and graphs that the parts of a recipe leave for serving.

::

    RUN/artifacts/NAME/manifest.json     `Manifest`; written last
    RUN/artifacts/NAME/<table>.npy       arrays, which serving maps
    RUN/artifacts/NAME/<graph>.onnx

Errors::

    ArtifactError              the run has no such artifact, or a damaged one
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.files import replace_folder, write_atomically

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["Artifact", "ArtifactError", "Artifacts", "Content", "Manifest", "write_artifact"]

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}(?!\n)$")]
_MANIFEST = "manifest.json"


class ArtifactError(ValueError):
    """The run has no such artifact, or a damaged one."""


class Content(msgspec.Struct, frozen=True):
    """One file of an artifact."""

    sha256: str
    dtype: str = ""
    """Of a table."""
    shape: tuple[int, ...] = ()
    """Of a table."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an artifact holds, and what made it."""

    name: Name
    part: str
    """Class of the part that made it."""
    made: str
    """Digest of the part's config and of its data, by which a training that continues finds that it need not be repeated."""
    tables: dict[Name, Content]
    graphs: dict[Name, Content]


class Artifact:
    """Opened artifact."""

    def __init__(self, folder: Path) -> None:
        """Raises `ArtifactError`."""
        self.folder = folder
        try:
            self.manifest = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"Expected the manifest of an artifact, got: {error} - at {folder}") from error

    def table(self, name: str) -> NDArray[Any]:
        """Map a table. Raises `ArtifactError` where there is none of this name, or one of other shape than was written."""
        content = self._known(name, self.manifest.tables, "table")
        path = self.folder / f"{name}.npy"
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"Expected the table `{name}`, got: {error} - at {path}") from error
        if (str(mapped.dtype), mapped.shape) != (content.dtype, content.shape):
            got = f"{mapped.dtype} {list(mapped.shape)}"
            raise ArtifactError(f"Expected {content.dtype} {list(content.shape)}, got {got} - at {path}")
        return np.asarray(mapped)  # a plain array over the mapped bytes: indexing a memmap takes several times as long

    def graph(self, name: str, inputs: tuple[str, ...], output: str, threads: int = 1) -> ort.InferenceSession:
        """Open a graph `inputs` → `output`. Raises `ArtifactError`, `PublishedError`."""
        from pocketrank.cloud.published.graphs import open_graph

        self._known(name, self.manifest.graphs, "graph")
        return open_graph(self.folder / f"{name}.onnx", inputs, output, threads)

    def verify(self) -> None:
        """Read all files and compare their digests. Raises `ArtifactError`."""
        for ending, contents in (("npy", self.manifest.tables), ("onnx", self.manifest.graphs)):
            for name, content in contents.items():
                path = self.folder / f"{name}.{ending}"
                if not path.is_file() or _sha256(path) != content.sha256:
                    raise ArtifactError(f"Expected the file that was written, got another or none - at {path}")

    def _known(self, name: str, contents: Mapping[str, Content], kind: str) -> Content:
        if name not in contents:
            has = ", ".join(contents) or "none"
            raise ArtifactError(f"Expected a {kind} of the artifact `{self.manifest.name}` ({has}), got `{name}`")
        return contents[name]


class Artifacts:
    """Artifacts of a run, by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all artifacts."""
        return tuple(sorted(path.parent.name for path in self._folder.glob(f"*/{_MANIFEST}")))

    def __getitem__(self, name: str) -> Artifact:
        """Return an artifact. Raises `ArtifactError` where the run has none of this name."""
        if name not in self.names:
            has = ", ".join(self.names) or "none"
            raise ArtifactError(f"Expected an artifact of the run ({has}), got `{name}`; train with the part that makes it")
        return Artifact(self._folder / name)


def write_artifact(
    folder: Path, name: str, *, part: str, made: str, tables: Mapping[str, NDArray[Any]], graphs: Mapping[str, bytes]
) -> None:
    """Write an artifact into `folder`/`name`, in place of one that is there. Raises `ArtifactError`, OSError."""
    work = folder / f"{name}.{os.urandom(8).hex()}.part"
    work.mkdir(parents=True)
    try:
        contents: dict[str, dict[str, Content]] = {"tables": {}, "graphs": {}}
        for table, values in tables.items():
            np.save(work / f"{table}.npy", values, allow_pickle=False)
            digest = _sha256(work / f"{table}.npy")
            contents["tables"][table] = Content(digest, str(values.dtype), tuple(values.shape))
        for graph, data in graphs.items():
            (work / f"{graph}.onnx").write_bytes(data)
            contents["graphs"][graph] = Content(_sha256(work / f"{graph}.onnx"))
        try:
            plain = msgspec.to_builtins(Manifest(name=name, part=part, made=made, **contents))
            manifest = msgspec.convert(plain, Manifest)
        except msgspec.ValidationError as error:
            raise ArtifactError(f"Expected letters, digits and `_` in names, got: {error}") from error
        write_atomically(work / _MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        replace_folder(work, folder / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
