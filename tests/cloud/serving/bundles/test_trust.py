"""What a publish token alone cannot do: bundles that nobody signed, serials that lock the operator out; and the way back."""

import pickle
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from pocketrank.cloud.serving.bundles.publish import (
    BadBundleError,
    BundlePublish,
    BundleStoreError,
    StaleBundleError,
    UntrustedError,
)
from pocketrank.cloud.serving.bundles.store import BundleRepository, BundleStoreConfig
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.codec import to_json
from pocketrank.device.contract import BundleRef, Release, Signature, Signed
from pocketrank.export.signing import public_key, sign
from tests.cloud.serving.bundle_samples import FILES, digest, fill, manifest_of, publish_of
from tests.cloud.small_published import SPLIT_VERSION

BUNDLE, RELEASE, STRANGER = (SigningKey(letter * 32) for letter in (b"b", b"r", b"s"))
KEYS = TrustedKeys((public_key(BUNDLE),), (public_key(RELEASE),))
NEW = {**FILES, "models/split.fp32.onnx": b"better" * 1000}
NOW_S = 1_770_000_000


def _store(folder: Path, keys: TrustedKeys | None = KEYS, **config: Any) -> BundleRepository:
    store = BundleRepository(folder, lambda: (SPLIT_VERSION,), BundleStoreConfig(keys, **config), lambda: NOW_S)
    fill(store, FILES)
    fill(store, NEW)
    return store


def _signed(
    files: dict[str, bytes], serial: int = 1, key: SigningKey = BUNDLE, release: tuple[SigningKey, int] | None = None
) -> BundlePublish:
    """A bundle that is signed by `key`, and its release by another, with a serial."""
    raw = to_json(manifest_of(files, serial))
    text = None
    if release is not None:
        bundle = BundleRef(serial=serial, manifest_bytes=len(raw), manifest_sha256=digest(raw))
        payload = to_json(Release(serial=release[1], created_ms=0, expires_ms=1, bundle=bundle))
        text = to_json(Signed(payload=payload, signatures=sign("release", payload, [release[0]])))
    return BundlePublish(manifest=raw, signatures=to_json(Signed(signatures=sign("manifest", raw, [key]))), release=text)


def _served(store: BundleRepository) -> dict[str, bytes] | None:
    bundle = store.current()
    return None if bundle is None else {path: file.path.read_bytes() for path, file in bundle.files.items()}


def test_only_what_trusted_keys_signed_is_served(tmp_path: Path) -> None:
    store = _store(tmp_path)
    assert store.commit(_signed(FILES, 1, release=(RELEASE, 5))).serial == 1
    good = _signed(NEW, 2)
    nobody = to_json(Signed(signatures=(Signature(key_id="0" * 16, signature=bytes(64)),)))
    for wrong in (
        publish_of(NEW, 2),  # unsigned
        _signed(NEW, 2, STRANGER),
        _signed(NEW, 2, RELEASE),  # a key of another role
        BundlePublish(manifest=good.manifest, signatures=to_json(Signed(signatures=()))),
        BundlePublish(manifest=good.manifest, signatures=nobody),
        BundlePublish(manifest=good.manifest, signatures=_signed(NEW, 3).signatures),  # of another manifest
        _signed(NEW, 2, release=(STRANGER, 6)),
        _signed(NEW, 2, release=(BUNDLE, 6)),
    ):
        with pytest.raises(UntrustedError) as caught:
            store.commit(wrong)
        assert caught.value.status == 403
        assert _served(store) == FILES
    with pytest.raises(UntrustedError, match=r"trusted release keys, got 0 - at `\$.release`"):
        store.commit(_signed(NEW, 2, release=(STRANGER, 6)))
    assert store.commit(good).serial == 2
    assert _served(store) == NEW


def test_two_keys_must_sign_where_the_threshold_says_so(tmp_path: Path) -> None:
    both = TrustedKeys((public_key(BUNDLE), public_key(STRANGER)), (public_key(RELEASE),), manifest_threshold=2)
    store, raw = _store(tmp_path, both), to_json(manifest_of(FILES, 1))
    one, two, twice = (to_json(Signed(signatures=sign("manifest", raw, keys))) for keys in (
        [BUNDLE], [BUNDLE, STRANGER], [BUNDLE, BUNDLE],
    ))  # fmt: skip
    for signatures in (one, twice):
        with pytest.raises(UntrustedError, match="2 trusted manifest keys, got 1"):
            store.commit(BundlePublish(manifest=raw, signatures=signatures))
    assert store.commit(BundlePublish(manifest=raw, signatures=two)).serial == 1


def test_without_keys_nothing_is_accepted_unless_that_is_wanted(tmp_path: Path) -> None:
    store = _store(tmp_path, None)
    for publish in (publish_of(FILES), _signed(FILES)):  # a signature that nobody verifies is none
        with pytest.raises(UntrustedError, match="a server with keys that verify bundles, or the option"):
            store.commit(publish)
    assert _served(store) is None
    assert _store(tmp_path, None, unverified=True).commit(publish_of(FILES)).serial == 1


def test_keys_reach_worker_processes() -> None:
    assert pickle.loads(pickle.dumps(BundleStoreConfig(KEYS))).keys == KEYS


@pytest.mark.parametrize("serial", [2**63 - 1, NOW_S + 86_401, NOW_S * 1000, -1])
def test_a_serial_of_the_future_is_refused(tmp_path: Path, serial: int) -> None:
    store = _store(tmp_path)
    store.commit(_signed(FILES, 1, release=(RELEASE, 5)))
    with pytest.raises(BadBundleError, match=f"0 to {NOW_S + 86_400}, .* got {serial} - at `.*manifest.serial`"):
        store.commit(_signed(NEW, serial))
    if 0 < serial < 1 << 53:  # others are no serials of a release
        with pytest.raises(BadBundleError, match=r"release\.payload\.serial"):
            store.commit(_signed(NEW, 2, release=(RELEASE, serial)))
    assert _served(store) == FILES
    for number, near in zip(count(2), (NOW_S - 1, NOW_S, NOW_S + 86_400), strict=False):
        assert store.commit(_signed(FILES if number % 2 else NEW, near, release=(RELEASE, near))).serial == near


def test_a_bundle_is_rolled_back_once_and_replaced(tmp_path: Path) -> None:
    store, other = _store(tmp_path), _store(tmp_path)
    good = _signed(FILES, 1, release=(RELEASE, 5))
    store.commit(good)
    store.commit(_signed(NEW, NOW_S + 86_400))
    assert _served(other) == NEW
    other.rollback()
    assert _served(store) == _served(other) == FILES
    assert (now := store.current()) is not None
    assert now.texts == good  # with its release
    with pytest.raises(StaleBundleError, match="a bundle that was served before, got none") as caught:
        store.rollback()
    assert caught.value.status == 409
    assert _served(store) == FILES
    assert store.commit(_signed(NEW, 2)).serial == 2  # the serial that was too high no longer counts
    store.rollback()
    assert _served(store) == FILES


def test_another_release_of_a_bundle_keeps_the_way_back(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.commit(_signed(FILES, 1))
    store.commit(_signed(NEW, 2))
    store.commit(_signed(NEW, 2, release=(RELEASE, 5)))
    store.commit(_signed(NEW, 2, release=(RELEASE, 6)))
    store.rollback()
    assert _served(store) == FILES


def test_after_the_first_bundle_there_is_none(tmp_path: Path) -> None:
    store, other = _store(tmp_path), _store(tmp_path)
    with pytest.raises(StaleBundleError):
        store.rollback()
    store.commit(_signed(FILES, 9))
    assert _served(other) == FILES
    store.rollback()
    assert _served(store) is _served(other) is None
    with pytest.raises(StaleBundleError):
        store.rollback()
    assert store.commit(_signed(NEW, 1)).serial == 1


def test_files_of_the_bundle_before_are_kept(tmp_path: Path) -> None:
    now = [time.time()]
    config = BundleStoreConfig(KEYS, keep_s=1.0, store_bytes_max=12_000)
    store = BundleRepository(tmp_path, lambda: (SPLIT_VERSION,), config, lambda: now[0])
    fill(store, FILES)
    fill(store, NEW)
    store.commit(_signed(FILES, 1))
    store.commit(_signed(NEW, 2))
    now[0] += 100
    with pytest.raises(BundleStoreError):  # there is no room, and those files are not removed to make some
        fill(store, {"more": b"m" * 2000})
    store.commit(_signed(NEW, 2, release=(RELEASE, 5)))
    store.rollback()
    assert _served(store) == FILES


def test_a_way_back_that_is_trusted_no_longer_is_refused(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.commit(_signed(FILES, 1))
    store.commit(_signed(NEW, 2))
    others = _store(tmp_path, TrustedKeys.one(public_key(STRANGER)))
    with pytest.raises(UntrustedError):
        others.rollback()
    assert _served(others) == NEW


def test_a_record_of_the_former_release_is_read_and_has_no_way_back(tmp_path: Path) -> None:
    store = _store(tmp_path)
    (tmp_path / "current.json").write_bytes(to_json(_signed(FILES, 1)))
    assert _served(store) == FILES
    with pytest.raises(StaleBundleError):
        store.rollback()
    store.commit(_signed(NEW, 2))
    store.rollback()
    assert _served(store) == FILES
