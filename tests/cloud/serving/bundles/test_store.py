import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pocketrank.cloud.serving.bundles.files import BundleFilesError
from pocketrank.cloud.serving.bundles.publish import (
    BadBundleError,
    BundlePublish,
    BundleReceipt,
    BundleWriteError,
    MissingFilesError,
    StaleBundleError,
    StoreFullError,
)
from pocketrank.cloud.serving.bundles.store import BundleRepository, BundleStoreConfig
from pocketrank.device.contract import ModelEntry
from tests.cloud.serving.bundle_samples import FILES, digest, fill, publish_of, release_of
from tests.cloud.small_published import SPLIT_VERSION

NEW = {**FILES, "models/split.fp32.onnx": b"better" * 1000}

_WRITE_HALF = """
import sys, os
from pathlib import Path
from pocketrank.cloud.serving.bundles.store import BundleRepository
with BundleRepository(Path(sys.argv[1]), lambda: ()).incoming("0" * 64, 1 << 20) as file:
    file.write(bytes(1 << 19))
    os.kill(os.getpid(), 9)
"""


def _store(folder: Path, **config: Any) -> BundleRepository:
    return BundleRepository(folder, lambda: (SPLIT_VERSION, "0lder"), BundleStoreConfig(unverified=True, **config))


def _served(store: BundleRepository) -> dict[str, bytes]:
    bundle = store.current()
    assert bundle is not None
    for file in bundle.files.values():
        file.check()
    return {path: file.path.read_bytes() for path, file in bundle.files.items()}


def _blobs(folder: Path) -> set[str]:
    return set(os.listdir(folder / "blobs"))


def test_a_bundle_is_served_once_all_of_it_is_there(tmp_path: Path) -> None:
    store = _store(tmp_path)
    publish = publish_of(FILES, release=3)
    assert store.current() is None
    with pytest.raises(MissingFilesError) as caught:
        store.commit(publish)
    assert set(caught.value.missing) == {digest(data) for data in FILES.values()}
    assert store.current() is None
    fill(store, FILES)
    assert store.current() is None
    receipt = BundleReceipt(serial=1, manifest_sha256=digest(publish.manifest), files=2, bytes=5002)
    assert store.commit(publish) == receipt
    assert _served(store) == FILES
    bundle = store.current()
    assert bundle is not None
    assert bundle.texts == publish
    assert store.commit(publish) == receipt  # again, and nothing happens
    assert store.current() is bundle


def test_every_other_process_and_the_next_start_serve_it_too(tmp_path: Path) -> None:
    first, second = _store(tmp_path), _store(tmp_path)
    fill(first, FILES)
    assert (first.is_loaded(), second.is_loaded()) == (True, True)
    first.commit(publish_of(FILES))
    assert second.is_loaded() is False
    assert _served(second) == FILES
    fill(second, NEW)
    second.commit(publish_of(NEW, 2))
    assert _served(first) == _served(_store(tmp_path)) == NEW


def test_files_of_the_last_bundle_need_not_be_sent_again(tmp_path: Path) -> None:
    store = _store(tmp_path)
    fill(store, FILES)
    store.commit(publish_of(FILES))
    with pytest.raises(MissingFilesError) as caught:
        store.commit(publish_of(NEW, 2))
    assert caught.value.missing == (digest(NEW["models/split.fp32.onnx"]),)


def test_a_new_release_of_the_same_bundle_is_served(tmp_path: Path) -> None:
    store = _store(tmp_path)
    fill(store, FILES)
    for serial in (4, 5, 5):
        publish = publish_of(FILES, release=serial)
        store.commit(publish)
        bundle = store.current()
        assert bundle is not None
        assert bundle.texts.release == publish.release
    with pytest.raises(StaleBundleError, match="a serial from 5, which is served, got 4"):
        store.commit(publish_of(FILES, release=4))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"path": "../spec.json"}, "a relative path of plain names"),
        ({"path": "/etc/passwd"}, "a relative path of plain names"),
        ({"path": "a//b"}, "a relative path of plain names"),
        ({"path": "a/./b"}, "a relative path of plain names"),
        ({"path": "a\\b"}, "a relative path of plain names"),
        ({"path": "a\0b"}, "a relative path of plain names"),
        ({"path": "caf\u00e9"}, "a relative path of plain names"),
        ({"path": ""}, "a relative path of plain names"),
        ({"path": "MODELS/split.fp32.onnx"}, "each file listed once"),
        ({"sha256": "../../current.json"}, "a size and a SHA-256"),
        ({"sha256": "A" * 64}, "a size and a SHA-256"),
        ({"bytes": -1}, "a size and a SHA-256"),
        ({"bytes": 3}, "3 bytes for `spec.json`, got 2"),
        ({"bytes": 1 << 40}, "at most 268435456 bytes"),
        ({"spec": "other.json"}, r"manifest\.spec"),
        ({"models": (ModelEntry(form="split", format="onnx", precision="fp32", path="no", bytes=1),)}, r"models\[0\]\.path"),
        ({"version": 9}, r"manifest\.version"),
    ],
)
def test_a_manifest_that_no_device_would_take_is_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    store = _store(tmp_path)
    fill(store, FILES)
    with pytest.raises(BadBundleError, match=message) as caught:
        store.commit(publish_of(FILES, **wrong))
    assert caught.value.path.startswith("$.manifest")
    assert store.current() is None


def test_what_is_no_manifest_signature_or_release_is_refused(tmp_path: Path) -> None:
    store = _store(tmp_path)
    fill(store, FILES)
    good = publish_of(FILES).manifest
    for publish, where in (
        (BundlePublish(manifest=b"{"), "$.manifest"),
        (BundlePublish(manifest=b"x" * (5 << 20)), "$.manifest"),
        (BundlePublish(manifest=good, signatures=b"[]"), "$.signatures"),
        (BundlePublish(manifest=good, signatures=b" " * (1 << 17)), "$.signatures"),
        (BundlePublish(manifest=good, release=b"{}"), "$.release.signatures"),
        (BundlePublish(manifest=good, release=release_of(good + b" ")), "$.release"),
    ):
        with pytest.raises(BadBundleError) as caught:
            store.commit(publish)
        assert caught.value.path == where or where in str(caught.value)
    assert store.current() is None


def test_a_bundle_of_another_split_version_or_no_newer_is_refused(tmp_path: Path) -> None:
    store = _store(tmp_path)
    fill(store, FILES)
    fill(store, NEW)
    with pytest.raises(StaleBundleError, match="a split version that is served: 0lder, 5m4ll, got `0ther`"):
        store.commit(publish_of(FILES, split_version="0ther"))
    store.commit(publish_of(FILES, 5))
    for serial in (4, 5):
        with pytest.raises(StaleBundleError, match=f"a serial past 5, which is served, got {serial}"):
            store.commit(publish_of(NEW, serial))
    assert _served(store) == FILES
    store.commit(publish_of(NEW, 6))
    assert _served(store) == NEW


@pytest.mark.parametrize("name", ["", "..", "../current.json", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"])
def test_only_a_digest_is_a_name(tmp_path: Path, name: str) -> None:
    store = _store(tmp_path)
    for act in (lambda: store.has(name), lambda: store.incoming(name, 1).__enter__()):
        with pytest.raises(BadBundleError, match="64 hex digits"):
            act()
    assert (_blobs(tmp_path), os.listdir(tmp_path / "incoming")) == (set(), [])


@pytest.mark.parametrize(("parts", "size"), [([b"ab"], 3), ([b"ab", b"cd"], 3), ([b"abd"], 3), ([], 3), ([b"abc", b"d"], 3)])
def test_a_file_that_is_not_as_announced_leaves_nothing(tmp_path: Path, parts: list[bytes], size: int) -> None:
    store = _store(tmp_path)

    def send() -> None:
        with store.incoming(digest(b"abc"), size) as file:
            for part in parts:
                file.write(part)

    with pytest.raises(BadBundleError):
        send()
    assert (_blobs(tmp_path), os.listdir(tmp_path / "incoming")) == (set(), [])
    assert store.has(digest(b"abc")) is False


def test_a_process_killed_half_way_leaves_the_old_bundle_and_its_rest_is_removed_later(tmp_path: Path) -> None:
    store = _store(tmp_path, keep_s=0.0)
    fill(store, FILES)
    store.commit(publish_of(FILES))
    assert subprocess.run([sys.executable, "-c", _WRITE_HALF, str(tmp_path)], check=False).returncode == -9
    assert len(os.listdir(tmp_path / "incoming")) == 1
    assert _served(_store(tmp_path)) == FILES
    fill(store, NEW)
    store.commit(publish_of(NEW, 2))
    assert os.listdir(tmp_path / "incoming") == []


def test_files_that_no_bundle_names_are_removed_after_a_while(tmp_path: Path) -> None:
    now = [1e9]
    store = BundleRepository(
        tmp_path, lambda: (SPLIT_VERSION,), BundleStoreConfig(unverified=True, keep_s=100.0), lambda: now[0]
    )
    bundles = [{**FILES, "models/split.fp32.onnx": bytes([n]) * 9} for n in range(4)]
    for serial, files in enumerate(bundles, start=1):
        fill(store, {**files, "stray": b"stray%d" % serial})
        for name in _blobs(tmp_path):
            os.utime(tmp_path / "blobs" / name, (now[0], now[0]))
        now[0] += 60
        store.commit(publish_of(files, serial))
    kept = {digest(data) for files in bundles[2:] for data in files.values()}  # what is served, and the one before
    assert kept <= _blobs(tmp_path)
    now[0] += 101
    fill(store, {"young": b"young"})
    os.utime(tmp_path / "blobs" / digest(b"young"), (now[0], now[0]))
    store.commit(publish_of({**bundles[3], "x": FILES["spec.json"]}, 9))
    assert _blobs(tmp_path) == {digest(data) for data in bundles[3].values()} | {digest(b"young")}


def test_a_store_that_is_full_makes_room_or_refuses(tmp_path: Path) -> None:
    now = [1e9]
    store = BundleRepository(
        tmp_path, lambda: (SPLIT_VERSION,), BundleStoreConfig(unverified=True, store_bytes_max=6000), lambda: now[0]
    )
    fill(store, FILES)
    store.commit(publish_of(FILES))
    fill(store, {"stray": b"s" * 900})
    with pytest.raises(StoreFullError, match="5902 of 6000 bytes taken, 500 more") as caught:
        fill(store, {"more": b"m" * 500})
    assert (caught.value.status, caught.value.headers) == (507, {"Retry-After": "60"})
    with store.incoming(digest(b"n" * 90), 90) as file:
        file.write(b"n" * 90)
        with pytest.raises(StoreFullError, match="5992 of 6000"):
            fill(store, {"two at once": b"t" * 90})
    os.utime(tmp_path / "blobs" / digest(b"s" * 900), (1, 1))
    fill(store, {"more": b"m" * 500})
    assert store.has(digest(b"s" * 900)) is False
    assert _served(store) == FILES


def test_a_damaged_record_leaves_what_was_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = _store(tmp_path)
    fill(store, FILES)
    store.commit(publish_of(FILES))
    assert _served(store) == FILES
    good = (tmp_path / "current.json").read_bytes()
    (tmp_path / "current.json").write_bytes(good[:-5])
    assert _served(store) == _served(store) == FILES
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert _store(tmp_path).current() is None
    (tmp_path / "current.json").write_bytes(b"")
    with pytest.raises(BundleWriteError, match="damaged"):
        store.commit(publish_of(FILES, 2))


def test_a_damaged_file_is_never_served_as_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = _store(tmp_path)
    fill(store, FILES)
    store.commit(publish_of(FILES))
    bundle = store.current()
    assert bundle is not None
    blob = tmp_path / "blobs" / digest(FILES["spec.json"])
    blob.write_bytes(b"[]")  # of the same size
    with pytest.raises(BundleFilesError, match=r"at spec\.json"):
        _served(store)
    assert bundle.files["models/split.fp32.onnx"].check().st_size == 5000
    os.utime(tmp_path / "current.json", (1, 1))  # a bundle that cannot be loaded leaves the one before
    assert store.current() is store.current() is bundle
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert _store(tmp_path).current() is None
    blob.write_bytes(FILES["spec.json"])
    assert _served(store) == FILES


def test_commits_at_once_end_with_the_newest(tmp_path: Path) -> None:
    stores = [_store(tmp_path) for _ in range(4)]
    bundles = {serial: {**FILES, "spec.json": b"%d" % serial} for serial in range(1, 21)}
    for files in bundles.values():
        fill(stores[0], files)

    def commit(serial: int) -> int:
        try:
            return stores[serial % 4].commit(publish_of(bundles[serial], serial)).serial
        except StaleBundleError:
            return 0

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(commit, bundles))
    assert max(done) == 20
    assert {_served(store)["spec.json"] for store in stores} == {b"20"}


def test_a_folder_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleWriteError, match="a disk that stores"):
        _store(tmp_path / "file" / "store")
