from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import MANIFEST, SIGNATURES, BundleVersionError, SignatureError
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.codec import to_json
from pocketrank.device.contract import Role, Signature, Signed, key_id
from pocketrank.export.signing import public_key, sign, sign_manifest
from tests.device.worlds import make_bundle

ONE, TWO, OTHER = (SigningKey(bytes([i]) * 32) for i in (1, 2, 3))
PUBLIC, ONE_ID = public_key(ONE), key_id(bytes(ONE.verify_key))
KEYS = TrustedKeys((PUBLIC,), (public_key(TWO),))
BOTH = TrustedKeys((PUBLIC, public_key(TWO)), (PUBLIC,), manifest_threshold=2)


def test_the_right_key_in_its_role() -> None:
    KEYS.verify("manifest", b"data", sign("manifest", b"data", [ONE]), "m")
    KEYS.verify("release", b"data", sign("release", b"data", [TWO]), "r")
    KEYS.verify("manifest", b"data", sign("manifest", b"data", [OTHER, ONE]), "m")
    TrustedKeys.one(PUBLIC.upper()).verify("release", b"", sign("release", b"", [ONE]), "r")
    BOTH.verify("manifest", b"data", sign("manifest", b"data", [TWO, ONE]), "m")


@pytest.mark.parametrize(
    ("keys", "role", "signatures"),
    [
        (KEYS, "manifest", ()),
        (KEYS, "manifest", sign("manifest", b"data", [OTHER])),
        (KEYS, "manifest", sign("manifest", b"data", [TWO])),
        (KEYS, "manifest", sign("release", b"data", [ONE])),
        (KEYS, "release", sign("release", b"data", [ONE])),
        (KEYS, "manifest", sign("manifest", b"data ", [ONE])),
        (KEYS, "manifest", [Signature(key_id=ONE_ID, signature=b"short")]),
        (
            KEYS,
            "manifest",
            [msgspec.structs.replace(sign("manifest", b"data", [OTHER])[0], key_id=ONE_ID)],
        ),
        (BOTH, "manifest", sign("manifest", b"data", [ONE])),
        (BOTH, "manifest", sign("manifest", b"data", [ONE, ONE])),
        (BOTH, "manifest", sign("manifest", b"data", [ONE, OTHER])),
    ],
)
def test_all_others_are_refused(keys: TrustedKeys, role: Role, signatures: Sequence[Signature]) -> None:
    with pytest.raises(SignatureError, match=rf"Expected signatures of \d trusted {role} keys, got \d - at where"):
        keys.verify(role, b"data", signatures, "where")


@settings(max_examples=30)
@given(st.binary(max_size=64), st.data())
def test_any_other_byte_breaks_it(data: bytes, draw: st.DataObject) -> None:
    (signature,) = sign("manifest", data, [ONE])
    spoiled = bytearray(signature.signature + data)
    spoiled[draw.draw(st.integers(0, len(spoiled) - 1))] ^= draw.draw(st.integers(1, 255))
    changed = msgspec.structs.replace(signature, signature=bytes(spoiled[:64]))
    with pytest.raises(SignatureError):
        KEYS.verify("manifest", bytes(spoiled[64:]), [changed], "where")


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrustedKeys((), (PUBLIC,)),
        lambda: TrustedKeys(("ab",), (PUBLIC,)),
        lambda: TrustedKeys(("z" * 64,), (PUBLIC,)),
        lambda: TrustedKeys((PUBLIC, PUBLIC), (PUBLIC,), manifest_threshold=2),
        lambda: TrustedKeys((PUBLIC,), (PUBLIC,), release_threshold=0),
    ],
)
def test_keys_that_make_no_sense(make: Callable[[], TrustedKeys]) -> None:
    with pytest.raises(ValueError, match=r"Expected|hex"):
        make()


def test_a_bundle_that_was_signed_opens_with_its_keys_and_one_that_was_not_without(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    Bundle.open(tmp_path)
    with pytest.raises(SignatureError, match=SIGNATURES):
        Bundle.open(tmp_path, keys=KEYS)
    sign_manifest(tmp_path, [ONE])
    assert Bundle.open(tmp_path, keys=KEYS).manifest.serial == 1
    make_bundle(tmp_path)  # written again: signatures are not among the files that a manifest lists
    assert Bundle.open(tmp_path, keys=KEYS).manifest == Bundle.open(tmp_path).manifest


def test_the_signature_is_checked_before_the_manifest_is_read(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    sign_manifest(tmp_path, [ONE])
    (tmp_path / MANIFEST).write_bytes(b"[" * 9999)
    with pytest.raises(SignatureError):
        Bundle.open(tmp_path, keys=KEYS)


def test_an_envelope() -> None:
    text = to_json(Signed(payload=b"what", signatures=sign("release", b"what", [TWO])))
    assert KEYS.open("release", text, "r") == b"what"
    with pytest.raises(BundleVersionError):
        KEYS.open("release", text.replace(b'"version":1', b'"version":2'), "r")
