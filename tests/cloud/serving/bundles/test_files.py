from pathlib import Path

import pytest

from pocketrank.cloud.serving.bundles.files import BundleFile, BundleFiles, BundleFilesError
from tests.cloud.serving.live import write_bundle
from tests.cloud.small_published import SPLIT_VERSION

FILES = {"spec.json": b"{}", "models/split.fp32.onnx": b"model"}


def test_the_files_of_the_manifest_and_no_others(tmp_path: Path) -> None:
    write_bundle(tmp_path, FILES)
    (tmp_path / "secret").write_bytes(b"secret")
    files = BundleFiles(tmp_path, SPLIT_VERSION)
    assert {path: file.data for path in FILES if (file := files.get(path))} == FILES
    for path in ("secret", "manifest.json", "models", "./spec.json", "models/../spec.json", ""):
        assert files.get(path) is None
    assert files.manifest.data == (tmp_path / "manifest.json").read_bytes()


def test_a_bundle_stays_whole_while_the_folder_changes(tmp_path: Path) -> None:
    files = BundleFiles(write_bundle(tmp_path, FILES), SPLIT_VERSION)
    (tmp_path / "spec.json").write_bytes(b"new")
    file = files.get("spec.json")
    assert file is not None
    assert file.data == b"{}"


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "models/../../outside", "link"])
def test_a_manifest_that_points_outside_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "outside").write_bytes(b"{}")
    folder = write_bundle(tmp_path / "bundle", FILES, path=path)
    (folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleFilesError, match="paths inside the bundle"):
        BundleFiles(folder, SPLIT_VERSION)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bytes": 3}, "Expected 3 bytes"),
        ({"sha256": "0" * 64}, "SHA-256 0000"),
        ({"path": "missing"}, "Expected the file 'missing'"),
        ({"path": "models"}, "Expected the file 'models'"),
        ({"path": "nul\0"}, "null byte"),
        ({"bytes": 1 << 40}, "at most"),
    ],
)
def test_a_damaged_bundle_is_refused(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(BundleFilesError, match=message):
        BundleFiles(write_bundle(tmp_path, FILES, **wrong), SPLIT_VERSION)


def test_no_bundle_and_a_broken_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleFilesError, match=r"manifest\.json"):
        BundleFiles(tmp_path, SPLIT_VERSION)
    (tmp_path / "manifest.json").write_bytes(b'{"name": 1}')
    with pytest.raises(BundleFilesError, match=r"\$\.name"):
        BundleFiles(tmp_path, SPLIT_VERSION)


def test_a_bundle_of_another_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleFilesError, match="split version mine, got 0ther"):
        BundleFiles(write_bundle(tmp_path, FILES, "0ther"), "mine")


def test_signatures_and_the_release_of_now(tmp_path: Path) -> None:
    files = BundleFiles(write_bundle(tmp_path, FILES), SPLIT_VERSION)
    assert files.signatures is None
    assert files.release() is None
    (tmp_path / "manifest.sig").write_bytes(b"signed")
    (tmp_path / "release.json").write_bytes(b"first")
    files = BundleFiles(tmp_path, SPLIT_VERSION)
    assert (files.signatures and files.signatures.data, files.release()) == (b"signed", BundleFile.of(b"first"))
    (tmp_path / "release.json").write_bytes(b"second")
    assert files.release() == BundleFile.of(b"second")
    (tmp_path / "release.json").write_bytes(bytes(1 << 20))  # whatever that is, it is no release
    assert files.release() is None
