import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.device.bundle.bundle import Bundle, write_manifest
from pocketrank.device.bundle.files import (
    GOLDEN,
    MANIFEST,
    BundleError,
    BundleVersionError,
    CorruptBundleError,
    ExpiredBundleError,
    UnsafePathError,
    check_path,
)
from pocketrank.device.contract import GroupRule, ModelEntry, PersonalConfig, TaskPrior
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.runtimes.base import RuntimeLoadError
from tests.device.runtimes.test_runtimes import random_inputs
from tests.device.worlds import SPEC, SPLIT, T0, make_bundle, onnx_model, reference

CORE_ML = ModelEntry(form="split", format="coreml", precision="fp16", path="models/split.mlpackage", bytes=0)


def _write(folder: Path, **changes: Any) -> None:
    fields: dict[str, Any] = {"name": "b", "serial": 2, "split_version": SPLIT, "spec": SPEC, "models": [], "created_ms": T0}
    write_manifest(folder, **fields | changes)


def test_what_was_written_opens(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    assert bundle.spec == SPEC
    assert (bundle.split_version, bundle.manifest.serial, bundle.manifest.created_ms) == (SPLIT, 1, T0)
    assert [f.path for f in bundle.manifest.files] == ["models/self_contained.onnx", "models/split.onnx", "spec.json"]
    assert bundle.stages("split", "onnx")["whole"] == tmp_path / "models" / "split.onnx"
    assert bundle.forms("onnx") == ("split", "self_contained")
    assert {m.bytes for m in bundle.manifest.models} == {p.stat().st_size for p in (tmp_path / "models").iterdir()}
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("names", [{}, {"app": "reels"}, {"channel": "staging"}, {"app": "reels", "channel": "staging"}])
def test_a_manifest_names_the_app_and_channel_that_are_given(tmp_path: Path, names: dict[str, str]) -> None:
    _write(tmp_path, **names)
    assert Bundle.open(tmp_path).manifest.feed == (names.get("app", ""), names.get("channel", ""))
    written = json.loads((tmp_path / MANIFEST).read_text())
    assert {name: written[name] for name in ("app", "channel") if name in written} == names


def test_a_model_that_it_does_not_have(tmp_path: Path) -> None:
    assert make_bundle(tmp_path).stages("split", "onnx", "int8") == {}


def _variants(folder: Path) -> Bundle:
    """A whole model for all; heavy users have one in stages of the split form, and new ones a whole one in int8."""
    entries = []
    for name, group, stage, precision in [
        ("all", None, "whole", "fp32"),
        ("all_watch", None, "watch", "fp32"),
        ("heavy", "heavy", "whole", "fp32"),
        ("new", "new", "whole", "int8"),
    ]:
        (folder / f"{name}.onnx").write_bytes(name.encode())
        kind: dict[str, Any] = {"form": "split", "format": "onnx", "precision": precision, "stage": stage, "group": group}
        entries.append(ModelEntry(path=f"{name}.onnx", bytes=0, **kind))
    _write(folder, models=entries, groups=GroupRule(casual_from=2, heavy_from=5))
    return Bundle.open(folder)


def test_a_groups_own_model_is_served_whole_and_others_get_the_general_one(tmp_path: Path) -> None:
    bundle = _variants(tmp_path)
    assert [bundle.group(seen) for seen in (0, 1, 2, 4, 5)] == ["new", "new", "casual", "casual", "heavy"]
    general = {"whole": tmp_path / "all.onnx", "watch": tmp_path / "all_watch.onnx"}
    assert bundle.stages("split", "onnx") == general
    assert bundle.stages("split", "onnx", group="casual") == general
    assert bundle.stages("split", "onnx", group="new") == general  # its own is of another precision
    assert bundle.stages("split", "onnx", group="heavy") == {"whole": tmp_path / "heavy.onnx"}  # and no stage of the general
    assert bundle.forms("onnx", "int8", "new") == ("split",)
    assert bundle.forms("onnx", "int8") == bundle.forms("onnx", "int8", "heavy") == ()


def test_a_manifest_from_before_groups_and_personal_layers_opens(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_bytes())
    del manifest["personal"], manifest["groups"]
    for model in manifest["models"]:
        del model["group"]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    bundle = Bundle.open(tmp_path)
    assert bundle.forms("onnx", group="heavy") == ("split", "self_contained")
    assert bundle.group(1000) is None
    assert bundle.personal(7) is None


PERSONAL = PersonalConfig(tasks={"like": TaskPrior()})


def test_a_layer_continues_from_its_state_or_starts_new(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    _write(tmp_path, personal=PersonalConfig())
    assert Bundle.open(tmp_path).personal(7) is None
    _write(tmp_path, personal=PERSONAL)
    bundle = Bundle.open(tmp_path)
    assert bundle.manifest.personal == PERSONAL
    layer = bundle.personal(7)
    assert layer is not None
    assert (layer.tasks, layer.user_id, layer.events) == (SPEC.tasks, 7, 0)
    assert layer.learn(np.array([0.5, 0.5], np.float32), np.array([1, 1], np.float32), 3)
    state = layer.state()
    again = bundle.personal(7, state)
    assert again is not None
    assert again.state() == state
    fresh = bundle.personal(7)
    assert fresh is not None
    for user, data in ((7, b"x"), (7, state[:-1]), (7, state[:9] + b"\0" + state[10:]), (8, state)):
        new = bundle.personal(user, data)
        assert new is not None
        assert (new.user_id, new.events, new.drift) == (user, 0, 0)
    _write(tmp_path, personal=PERSONAL, serial=3)
    released = Bundle.open(tmp_path).personal(7, state)
    assert released is not None
    assert released.events == 0


def test_a_layer_over_tasks_that_the_spec_has_not_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    before = (tmp_path / MANIFEST).read_bytes()
    with pytest.raises(CorruptBundleError, match=r"`personal` tasks among \['long_view', 'like'\], got \['follow'\]"):
        _write(tmp_path, personal=PersonalConfig(tasks={"follow": TaskPrior()}))
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_a_model_may_be_a_folder(tmp_path: Path) -> None:
    data = tmp_path / "models" / "split.mlpackage" / "Data"
    data.mkdir(parents=True)
    (data / "weights.bin").write_bytes(b"12345")
    (data / "model.mlmodel").write_bytes(b"123")
    _write(tmp_path, models=[CORE_ML])
    bundle = Bundle.open(tmp_path)
    assert bundle.stages("split", "coreml", "fp16")["whole"] == data.parent
    assert bundle.manifest.models[0].bytes == 8


def _staged(folder: Path) -> Bundle:
    """A bundle whose one ONNX form has stages in files, and whose LiteRT forms have theirs in one file each."""
    (folder / "models").mkdir(parents=True)
    entries = []
    for path, format, stages in (
        ("models/split.onnx", "onnx", ("whole",)),
        ("models/split.page.onnx", "onnx", ("page",)),
        ("models/split.tflite", "tflite", ("whole", "page", "search")),
        ("models/self_contained.tflite", "tflite", ("page",)),
    ):
        (folder / path).write_bytes(path.encode())
        form = "self_contained" if "self" in path else "split"
        fields = {"form": form, "format": format, "precision": "fp32", "path": path, "bytes": 0}
        entries += [msgspec.convert(fields | {"stage": stage}, ModelEntry) for stage in stages]
    _write(folder, models=entries)
    return Bundle.open(folder)


def test_stages_have_files_of_their_own_or_share_one(tmp_path: Path) -> None:
    bundle, models = _staged(tmp_path), tmp_path / "models"
    assert bundle.stages("split", "onnx") == {"whole": models / "split.onnx", "page": models / "split.page.onnx"}
    assert bundle.stages("split", "tflite") == dict.fromkeys(("whole", "page", "search"), models / "split.tflite")
    sizes = {(m.path, m.bytes) for m in bundle.manifest.models}
    assert sizes == {(f.path, f.bytes) for f in bundle.manifest.files if f.path.startswith("models/")}


def test_a_form_is_there_when_its_whole_model_is(tmp_path: Path) -> None:
    bundle = _staged(tmp_path)
    assert bundle.forms("onnx") == bundle.forms("tflite") == ("split",)
    assert "whole" not in bundle.stages("self_contained", "tflite")


def test_writing_again_after_a_change(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    (tmp_path / "models" / "split.onnx").write_bytes(b"other")
    with pytest.raises(CorruptBundleError):
        Bundle.open(tmp_path)
    _write(tmp_path)
    assert Bundle.open(tmp_path).manifest.serial == 2


def test_writing_refuses_what_would_not_open_and_leaves_the_manifest(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    before = (tmp_path / MANIFEST).read_bytes()
    with pytest.raises(CorruptBundleError, match="a model's file or folder"):
        _write(tmp_path, models=[CORE_ML])
    with pytest.raises(CorruptBundleError, match="a spec that a device can use"):
        _write(tmp_path, spec=msgspec.structs.replace(SPEC, events_max=0))
    os.symlink(tmp_path / "spec.json", tmp_path / "link")
    with pytest.raises(UnsafePathError, match="a symbolic link"):
        _write(tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_expiry(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    _write(tmp_path, expires_ms=T0 + 10)
    assert Bundle.open(tmp_path, now_ms=T0 + 9).manifest.serial == 2
    with pytest.raises(ExpiredBundleError):
        Bundle.open(tmp_path, now_ms=T0 + 10)
    with pytest.raises(ExpiredBundleError):
        Bundle.open(tmp_path)


def _edit(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        (folder / MANIFEST).write_text(json.dumps(manifest | changes))

    return edit


def _edit_file(index: int, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        manifest["files"][index] |= changes
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return edit


def _manifest_folder(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()


def _flip(folder: Path) -> None:
    path = folder / "models" / "split.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(folder: Path) -> None:
    path = folder / "models" / "split.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def _link(folder: Path) -> None:
    path = folder / "models" / "split.onnx"
    path.rename(folder.parent / "outside.onnx")
    path.symlink_to(folder.parent / "outside.onnx")


def _link_folder(folder: Path) -> None:
    (folder / "models").rename(folder.parent / "outside")
    (folder / "models").symlink_to(folder.parent / "outside")


def _bad_spec(folder: Path) -> None:
    bad = json.loads((folder / "spec.json").read_bytes()) | {"events_max": 0}
    (folder / "spec.json").write_text(json.dumps(bad))
    # A digest that fits: the spec itself is what is wrong.
    size, digest = (folder / "spec.json").stat().st_size, _digest(folder / "spec.json")
    _edit_file(2, bytes=size, sha256=digest)(folder)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


MODEL = {"form": "split", "format": "onnx", "precision": "fp32", "path": "models/split.onnx", "bytes": 1}

BAD: dict[str, tuple[Callable[[Path], object], type[BundleError]]] = {
    "no_manifest": (lambda f: (f / MANIFEST).unlink(), CorruptBundleError),
    "manifest_is_folder": (_manifest_folder, CorruptBundleError),
    "manifest_cut": (lambda f: (f / MANIFEST).write_bytes((f / MANIFEST).read_bytes()[:-9]), CorruptBundleError),
    "manifest_huge": (lambda f: (f / MANIFEST).write_bytes(b" " * (5 << 20)), CorruptBundleError),
    "manifest_binary": (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe\x00"), CorruptBundleError),
    "version": (_edit(version=2, models="elsewhere"), BundleVersionError),
    "personal_tasks": (_edit(personal={"tasks": {"follow": {}}}), CorruptBundleError),
    "personal_numbers": (_edit(personal={"forget": -1}), CorruptBundleError),
    "groups_order": (_edit(groups={"casual_from": 9, "heavy_from": 3}), CorruptBundleError),
    "group_unknown": (_edit(models=[MODEL | {"group": "idle"}]), CorruptBundleError),
    "no_files": (_edit(files=[]), CorruptBundleError),
    "spec_not_listed": (_edit(spec="models/other.json"), CorruptBundleError),
    "spec_is_model": (_edit(spec="models/split.onnx"), CorruptBundleError),
    "spec_bad": (_bad_spec, CorruptBundleError),
    "model_bytes": (_edit(models=[MODEL]), CorruptBundleError),
    "model_not_listed": (_edit(models=[MODEL | {"path": "models/x.onnx"}]), CorruptBundleError),
    "model_outside": (_edit(models=[MODEL | {"path": "../x.onnx"}]), CorruptBundleError),
    "file_missing": (lambda f: (f / "models" / "split.onnx").unlink(), CorruptBundleError),
    "file_flipped": (_flip, CorruptBundleError),
    "file_cut": (_cut, CorruptBundleError),
    "file_twice": (_edit_file(0, path="models/split.onnx"), CorruptBundleError),
    "file_is_folder": (_edit_file(0, path="models"), CorruptBundleError),
    "file_parent": (_edit_file(0, path="../outside"), UnsafePathError),
    "file_absolute": (_edit_file(0, path="/etc/passwd"), UnsafePathError),
    "file_backslash": (_edit_file(0, path="models\\split.onnx"), UnsafePathError),
    "file_drive": (_edit_file(0, path="C:models"), UnsafePathError),
    "file_inner_parent": (_edit_file(0, path="models/../spec.json"), UnsafePathError),
    "file_nul": (_edit_file(0, path="a\0b"), UnsafePathError),
    **{
        f"file_{name!a}": (_edit_file(0, path=name), UnsafePathError)
        for name in ("models/", "evil.", "evil ", "con", "models/NUL.onnx", "\u00e9vil", "a" * 300, "a*", "a/" * 999)
    },
    "file_in_other_case": (_edit_file(0, path="Models/Split.ONNX"), CorruptBundleError),
    "file_in_file": (_edit_file(0, path="models/split.onnx/x"), CorruptBundleError),
    "lists_manifest": (_edit_file(0, path="Manifest.json"), CorruptBundleError),
    "lists_signatures": (_edit_file(0, path="manifest.sig"), CorruptBundleError),
    "link": (_link, UnsafePathError),
    "link_folder": (_link_folder, UnsafePathError),
    "bytes_negative": (_edit_file(0, bytes=-1), CorruptBundleError),
    "digest_text": (_edit_file(0, sha256="x"), CorruptBundleError),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bundles_are_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    make_bundle(folder)
    spoil, error = BAD[name]
    spoil(folder)
    with pytest.raises(error) as caught:
        Bundle.open(folder)
    assert type(caught.value) is error
    assert caught.value.where


@given(st.text(max_size=12) | st.lists(st.sampled_from(["a", "..", ".", "", "b.c"]), max_size=4).map("/".join))
def test_a_path_that_passes_stays_inside(path: str) -> None:
    try:
        parts = check_path(path)
    except UnsafePathError:
        return
    assert not parts.is_absolute()
    inside = os.path.normpath(os.path.join("/root", *parts.parts))
    assert inside.startswith("/root/")
    assert parts.as_posix() == path


def test_files_that_are_not_listed_are_ignored(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    (tmp_path / "notes.txt").write_text("later")
    assert Bundle.open(tmp_path).spec == SPEC


def _with_external_data(folder: Path, name: str = "weights/split.data") -> Bundle:
    """A bundle whose only model has its weights in another file."""
    (folder / "models" / "weights").mkdir(parents=True)
    path = folder / "models" / "split.onnx"
    onnx.save_model(onnx_model(SPEC, "split"), path, save_as_external_data=True, location=name, size_threshold=64)
    entry = ModelEntry(form="split", format="onnx", precision="fp32", path="models/split.onnx", bytes=0)
    _write(folder, models=[entry])
    return Bundle.open(folder)


def test_weights_in_another_file_are_part_of_the_model(tmp_path: Path) -> None:
    bundle, inputs = _with_external_data(tmp_path), random_inputs("split", 3, SPEC.events_max)
    file = bundle.read_model(bundle.stages("split", "onnx")["whole"])
    assert set(file.beside) == {"weights/split.data"}
    runtime = Ranker.open(bundle).runtimes["split"]["whole"]
    np.testing.assert_allclose(runtime.run(inputs), reference(SPEC, inputs), atol=1e-5)


@pytest.mark.parametrize("name", ["models/split.onnx", "models/weights/split.data"])
@pytest.mark.parametrize("swap", ["changed", "linked", "removed", "longer"])
def test_a_file_that_is_swapped_after_its_check_is_not_opened(tmp_path: Path, name: str, swap: str) -> None:
    bundle = _with_external_data(tmp_path / "bundle")
    path = bundle.folder / name
    data = path.read_bytes()
    changed = data[:-1] + bytes([data[-1] ^ 1])
    path.unlink()
    if swap == "changed":
        path.write_bytes(changed)
    elif swap == "longer":
        path.write_bytes(data + b"\0")
    elif swap == "linked":
        (tmp_path / "other").write_bytes(changed)
        path.symlink_to(tmp_path / "other")
    with pytest.raises(CorruptBundleError, match=path.name):
        Ranker.open(bundle)


@pytest.mark.parametrize("cwd", ["models", "."])
def test_weights_that_the_manifest_does_not_list_are_not_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cwd: str
) -> None:
    bundle = _with_external_data(tmp_path)
    left = tuple(entry for entry in bundle.manifest.files if not entry.path.endswith(".data"))
    unlisted = Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, files=left), bundle.spec)
    monkeypatch.chdir(tmp_path / cwd)  # where onnxruntime would look for the files of a model in memory
    with pytest.raises(RuntimeLoadError):
        Ranker.open(unlisted)


def test_recorded_scores_are_checked_as_they_are_read(tmp_path: Path) -> None:
    (tmp_path / GOLDEN).write_bytes(b"\x80")
    bundle = make_bundle(tmp_path)
    (tmp_path / GOLDEN).write_bytes(b"\x81")
    with pytest.raises(CorruptBundleError, match="SHA-256"):
        bundle.golden()
