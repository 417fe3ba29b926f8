from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pocketrank.device.bundle.bundle import write_manifest
from pocketrank.device.bundle.files import MANIFEST, SPEC
from pocketrank.device.contract import GroupRule, ModelEntry, PersonalConfig, TaskPrior
from pocketrank.export.bundle import REPORT
from pocketrank.sdk_demo.inspection import inspect_bundle
from tests.device import worlds

MODELS = [
    ModelEntry(form=form, format="onnx", precision="fp32", path=f"models/{form}.onnx", bytes=0)  # type: ignore[arg-type]
    for form in ("split", "self_contained")
]


def _manifest(folder: Path, **changes: Any) -> None:
    fields: dict[str, Any] = {
        "name": "tiny", "serial": 3, "split_version": worlds.SPLIT, "spec": worlds.SPEC, "models": MODELS,
        "created_ms": worlds.T0,
    }  # fmt: skip
    write_manifest(folder, **fields | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    worlds.make_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_good_bundle(folder: Path) -> None:
    personal = PersonalConfig(tasks={"like": TaskPrior()})
    measured = {"models": {"split.fp32.onnx": {"max_abs_diff": 1e-7, "gate": {"loss": 0.001, "order_agreement": 0.99}}}}
    (folder / REPORT).write_bytes(msgspec.json.encode(measured))
    _manifest(folder, personal=personal, groups=GroupRule(), expires_ms=worlds.T0 + 1)
    (folder / "notes.txt").write_text("not in the manifest")
    report = inspect_bundle(folder)
    assert report["problems"] == []
    assert (report["name"], report["serial"], report["split_version"]) == ("tiny", 3, worlds.SPLIT)
    assert report["expired"]
    assert report["further"] == {"personal": msgspec.to_builtins(personal), "groups": msgspec.to_builtins(GroupRule())}
    assert report["files"]["unlisted"] == ["notes.txt"]
    assert report["files"]["as_listed"] == report["files"]["listed"] == 4
    assert report["spec"] == msgspec.to_builtins(worlds.SPEC)
    split, alone = report["models"]
    size = (folder / "models" / "split.onnx").stat().st_size
    assert split["stages"] == {"whole": {"path": "models/split.onnx", "bytes": size}}
    assert (split["max_abs_diff"], split["auc_lost"], split["same_best"]) == (1e-7, 0.001, 0.99)
    assert alone["max_abs_diff"] is None
    assert min(split["rerank_ms"], alone["rerank_ms"]) > 0
    assert not inspect_bundle(worlds.make_bundle(folder.parent / "other").folder)["expired"]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str, list[str | None]]] = {
    "a changed model": (lambda f: _flip(f / "models/split.onnx"), "SHA-256", ["damaged", None]),
    "a cut model": (lambda f: (f / "models/split.onnx").write_bytes(b""), "bytes", ["damaged", None]),
    "no model": (lambda f: (f / "models/split.onnx").unlink(), "expected a readable file", ["damaged", None]),
    "a cut spec": (lambda f: (f / SPEC).write_bytes(b"{"), "bytes", ["no spec", "no spec"]),
    "another spec": (lambda f: _restate(f, spec=REPORT), "a listed file as the spec", ["no spec", "no spec"]),
    "a path out": (lambda f: _restate(f, outside=True), "a relative path", [None, None]),
}


def _restate(folder: Path, spec: str | None = None, outside: bool = False) -> None:
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes())
    if spec:
        manifest["spec"] = spec
    if outside:
        manifest["files"].append({"path": "../secret", "bytes": 1, "sha256": "0"})
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_bundle_is_reported_as_far_as_it_can_be_read(name: str, folder: Path) -> None:
    damage, expected, refused = DAMAGE[name]
    damage(folder)
    report = inspect_bundle(folder)
    assert len(report["problems"]) == 1
    assert expected in report["problems"][0]
    assert [row["refused"] for row in report["models"]] == refused
    assert [row["rerank_ms"] is None for row in report["models"]] == [why is not None for why in refused]


@pytest.mark.parametrize("text", [b"", b"{}", b'{"version": 9}', b"\xff"])
def test_of_a_manifest_that_cannot_be_read_there_is_only_that(text: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(text)
    report = inspect_bundle(folder)
    assert len(report["problems"]) == 1
    assert "models" not in report


def test_a_model_that_does_not_run_is_a_problem(folder: Path) -> None:
    (folder / "models" / "split.onnx").write_bytes(b"no model")
    _manifest(folder)
    report = inspect_bundle(folder)
    assert [row["refused"] for row in report["models"]] == ["does not run", None]
    assert "an ONNX model" in report["problems"][0]


def test_what_only_all_of_it_together_shows_is_found(folder: Path) -> None:
    (folder / "models" / "link.onnx").symlink_to("split.onnx")
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes())
    manifest["files"] = [f | {"path": f["path"].replace("split", "link")} for f in manifest["files"]]
    manifest["models"] = [m | {"path": m["path"].replace("split", "link")} for m in manifest["models"]]
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    assert "symbolic link" in inspect_bundle(folder)["problems"][0]


@pytest.mark.parametrize("text", [b"[]", b'{"models": 5}', b'{"models": {"split.fp32.onnx": [1]}}', b"{"])
def test_a_report_of_something_else_is_left_alone(text: bytes, folder: Path) -> None:
    (folder / REPORT).write_bytes(text)
    _manifest(folder)
    report = inspect_bundle(folder)
    assert report["problems"] == []
    assert report["models"][0]["max_abs_diff"] is None


def test_core_ml_has_no_runtime_here(folder: Path) -> None:
    (folder / "models" / "split.mlmodel").write_bytes(b"a program")
    coreml = ModelEntry(form="split", format="coreml", precision="fp32", path="models/split.mlmodel", bytes=0)
    _manifest(folder, models=[*MODELS, coreml])
    report = inspect_bundle(folder)
    assert report["problems"] == []
    assert report["models"][-1]["refused"] == "no runtime here"
