import os
from pathlib import Path

import pytest

from pocketrank.cloud.serving.bundles.files import BundleFiles, BundleFilesError, ServedBundle
from tests.cloud.serving.live import write_bundle
from tests.cloud.small_published import SPLIT_VERSION

FILES = {"spec.json": b"{}", "models/split.fp32.onnx": b"model"}


def read(bundle: ServedBundle) -> dict[str, bytes]:
    """Read the files as they are sent."""
    for file in bundle.files.values():
        file.check()
    return {path: file.path.read_bytes() for path, file in bundle.files.items()}


def test_a_bundle_has_the_files_of_the_manifest_and_no_others(tmp_path: Path) -> None:
    write_bundle(tmp_path, FILES)
    (tmp_path / "secret").write_bytes(b"secret")
    files = BundleFiles(tmp_path, {SPLIT_VERSION})
    assert read(files.current()) == FILES
    assert files.current().texts.manifest == (tmp_path / "manifest.json").read_bytes()


def test_a_bundle_stays_whole_while_the_folder_changes(tmp_path: Path) -> None:
    files = BundleFiles(write_bundle(tmp_path, FILES), {SPLIT_VERSION})
    manifest = files.current().texts.manifest
    for path in FILES:
        (tmp_path / path).write_bytes(b"new")
    (tmp_path / "manifest.json").unlink()
    assert read(files.current()) == FILES
    assert files.current().texts.manifest == manifest


def test_the_copies_are_removed_with_the_bundle(tmp_path: Path) -> None:
    files = BundleFiles(write_bundle(tmp_path, FILES), {SPLIT_VERSION})
    copy = files.current().files["spec.json"].path
    assert copy.exists()
    del files
    assert not copy.parent.exists()


def test_a_file_that_changes_on_the_disk_is_refused_until_it_is_right_again(tmp_path: Path) -> None:
    files = BundleFiles(write_bundle(tmp_path, FILES), {SPLIT_VERSION})
    spec = files.current().files["spec.json"]
    for damaged in (b"[]", b"{", b""):  # of the same size, too
        spec.path.write_bytes(damaged)
        os.utime(spec.path, (1, 1))
        with pytest.raises(BundleFilesError, match=r"SHA-256 .*, got .* - at spec\.json"):
            spec.check()
    spec.path.write_bytes(FILES["spec.json"])
    assert spec.check().st_size == 2


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "models/../../outside", "link"])
def test_a_manifest_that_points_outside_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "outside").write_bytes(b"{}")
    folder = write_bundle(tmp_path / "bundle", FILES, path=path)
    (folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleFilesError, match="paths inside the bundle"):
        BundleFiles(folder, {SPLIT_VERSION})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bytes": 3}, "Expected 3 bytes"),
        ({"sha256": "0" * 64}, "SHA-256 0000"),
        ({"path": "missing"}, "Expected the file 'missing'"),
        ({"path": "models"}, "Expected the file 'models'"),
        ({"path": "nul\0"}, "null (byte|character)"),
        ({"bytes": 1 << 40}, "at most"),
    ],
)
def test_a_damaged_bundle_is_refused(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(BundleFilesError, match=message):
        BundleFiles(write_bundle(tmp_path, FILES, **wrong), {SPLIT_VERSION})


def test_no_bundle_and_a_broken_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleFilesError, match=r"manifest\.json"):
        BundleFiles(tmp_path, {SPLIT_VERSION})
    (tmp_path / "manifest.json").write_bytes(b'{"name": 1}')
    with pytest.raises(BundleFilesError, match=r"\$\.name"):
        BundleFiles(tmp_path, {SPLIT_VERSION})


def test_a_bundle_of_another_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleFilesError, match="split version mine, got 0ther"):
        BundleFiles(write_bundle(tmp_path, FILES, "0ther"), {"mine"})


def test_an_absolute_path_is_refused_even_inside_the_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleFilesError, match="paths inside the bundle"):
        BundleFiles(write_bundle(tmp_path, FILES, path=str(tmp_path / "spec.json")), {SPLIT_VERSION})


def test_the_release_is_read_each_time(tmp_path: Path) -> None:
    texts = BundleFiles(write_bundle(tmp_path, FILES), {SPLIT_VERSION}).current().texts
    assert (texts.signatures, texts.release) == (None, None)
    (tmp_path / "manifest.sig").write_bytes(b"signed")
    (tmp_path / "release.json").write_bytes(b"first")
    files = BundleFiles(tmp_path, {SPLIT_VERSION})
    assert (files.current().texts.signatures, files.current().texts.release) == (b"signed", b"first")
    (tmp_path / "release.json").write_bytes(b"second")
    assert files.current().texts.release == b"second"
    (tmp_path / "release.json").write_bytes(bytes(1 << 20))  # too large for a release
    assert files.current().texts.release is None
