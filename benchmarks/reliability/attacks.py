"""The corpus of attacks on a device's updates: answers of servers, signed or not, and changes of a device's own files."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from nacl.signing import SigningKey

from benchmarks.reliability.released import (
    BUNDLE_KEY,
    KEYS,
    KEYS_OF_TWO,
    MODEL,
    NOW_MS,
    RELEASE_KEY,
    SECOND_KEY,
    SPEC,
    Answer,
    Weights,
    golden,
    make_files,
    model,
    release_of,
    signed_release,
    weights,
)
from pocketrank.device.bundle.files import GOLDEN, MANIFEST, RELEASE, SIGNATURES
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.codec import from_json, to_json, to_msgpack
from pocketrank.device.contract import Role, Signature, Signed, key_id, signed_bytes
from pocketrank.export.signing import sign

__all__ = ["FOLLOWED", "HELD", "Attack", "attacks", "honest"]

FLIPS = 12
"""Bytes of each file in which a bit is flipped, one at a time, at random places."""
CUTS = 4
"""Lengths that each file is cut to."""
ENDLESS = 1 << 12
"""Pieces of an answer without end: 256 MiB, where a device reads that far."""
DRIP_S = 0.02
"""Seconds between two bytes of a drip: each arrives well within a device's timeout."""
HELD, NEXT = 5, 6
"""Serials of the bundle that a device has, and of the one that is attacked."""
FOLLOWED = 9
"""Release that a device followed last."""
THIEF = SigningKey(b"t" * 32)
"""A key that no device trusts."""
UNSAFE = (
    "../evil", "../../state.json", "models/../../evil", "a/../../../evil", "..", ".", "", "./evil", "models//evil", "/evil",
    "/etc/passwd", "//host/share", "~/evil", "..\\evil", "models\\evil", "C:evil", "C:\\evil", "evil\0.json", "\0",
    "evil\n", "evil\r\nX: y", "con", "NUL", "aux.json", "models/COM1.onnx", "lpt9", "evil.", "evil ", " evil",
    "models/evil. ", "evil:stream", "evil*", "evil?", "evil|x", "\u2025/evil", "\uff0e\uff0e/evil", "..\u2215evil",
    "\u202eevil", "e\u0301vil", "\u00e9vil", "\u212aevil", "evil\u200b", "\ud7ff", "%2e%2e/evil", "a" * 300,
    "a/" * 600 + "a", "$(evil)", "`evil`",
)  # fmt: skip
"""Paths that leave a folder, or mean something else on some system."""

Sent = dict[str, bytes | Answer]


class Attack(NamedTuple):
    """One attack: what a server sends, and the keys and the clock of the device that receives it."""

    kind: str
    sent: Sent
    keys: TrustedKeys = KEYS
    now_ms: int = NOW_MS
    spoil: Callable[[Path], None] | None = None
    """Change of the device's own folder, in an attack on its disk."""


def honest() -> dict[str, bytes]:
    """Return an honest update: the files of a bundle, and its release."""
    files = make_files(NEXT, seed=1)
    return {**files, **signed_release(release_of(files[MANIFEST], NEXT))}


def attacks(seed: int) -> Iterator[Attack]:
    """Yield every attack. `seed` decides which bytes are changed."""
    whole = honest()
    yield from _tampered(whole, np.random.default_rng(seed))
    yield from _badly_signed(whole)
    yield from _stale_releases(whole)
    yield from _mixed(whole)
    yield from _bad_manifests(whole)
    yield from _endless(whole)
    yield from _bad_models()
    yield from _on_disk(whole)


def _tampered(whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[Attack]:
    """Files that were changed on the way."""
    for name, data in whole.items():
        places = np.flatnonzero(np.frombuffer(data, np.uint8) > ord(" "))  # JSON may be spaced in any way
        if name.endswith((".sig", RELEASE)):
            # base64 of 64 bytes has bits that say nothing, and other fields than these are not what a signature is about
            fields = re.finditer(rb'"(?:signature|payload|key_id)":\s*"([^"]+?)..?=*"', data)
            places = np.array([i for field in fields for i in range(*field.span(1))])
        for place in rng.choice(places, FLIPS, replace=False).tolist():
            flipped = bytearray(data)
            flipped[place] ^= 1
            yield Attack("tampered", {**whole, name: bytes(flipped)}, KEYS_OF_TWO)  # one lost signature must not be enough
        for size in rng.integers(0, len(data) - 2, CUTS).tolist():
            yield Attack("truncated", {**whole, name: data[:size]})
        yield Attack("longer", {**whole, name: data + b"}"})
        yield Attack("missing", {path: body for path, body in whole.items() if path != name})
        yield Attack("empty", {**whole, name: b""})


def _badly_signed(whole: dict[str, bytes]) -> Iterator[Attack]:
    """Signatures of others, of another role, or too few."""
    payload = from_json(whole[RELEASE], Signed).payload
    right_id = {"manifest": key_id(bytes(BUNDLE_KEY.verify_key)), "release": key_id(bytes(RELEASE_KEY.verify_key))}
    roles: tuple[tuple[Role, bytes, SigningKey], ...] = (
        ("manifest", whole[MANIFEST], BUNDLE_KEY),
        ("release", payload, RELEASE_KEY),
    )
    for role, data, key in roles:
        other: Role = "release" if role == "manifest" else "manifest"
        (stolen,) = sign(role, data, [THIEF])
        (honest,) = sign(role, data, [key])

        def sent(*signatures: Signature, role: Role = role, data: bytes = data) -> Sent:
            if role == "manifest":
                return {**whole, SIGNATURES: to_json(Signed(signatures=signatures))}
            return {**whole, RELEASE: to_json(Signed(signatures=signatures, payload=data))}

        def raw(message: bytes, key: SigningKey = key, role: Role = role) -> Signature:
            return Signature(key_id=right_id[role], signature=key.sign(message).signature)

        yield Attack("unsigned", sent())
        yield Attack("wrong_key", sent(stolen))
        yield Attack("right_id_of_another_key", sent(msgspec.structs.replace(stolen, key_id=right_id[role])))
        yield Attack("another_role", sent(*sign(other, data, [key])))
        yield Attack("another_roles_key", sent(*sign(role, data, [RELEASE_KEY if role == "manifest" else BUNDLE_KEY])))
        yield Attack("no_domain", sent(raw(data)))
        yield Attack("another_version", sent(raw(signed_bytes(role, data).replace(b".v1+", b".v2+"))))
        yield Attack("zeros", sent(Signature(key_id=right_id[role], signature=bytes(64))))
        yield Attack("cut_signature", sent(msgspec.structs.replace(honest, signature=honest.signature[:-1])))
        yield Attack("long_signature", sent(msgspec.structs.replace(honest, signature=honest.signature + b"x")))
        yield Attack("many_signatures", sent(*[stolen] * 200, honest))
        for kind, signatures in (
            ("threshold_one", [honest]),
            ("threshold_twice", [honest, honest]),
            ("threshold_thief", [honest, stolen]),
            ("threshold_two_ids", [honest, msgspec.structs.replace(honest, key_id=key_id(bytes(SECOND_KEY.verify_key)))]),
        ):
            yield Attack(kind, sent(*signatures), keys=KEYS_OF_TWO)
    bare = {name: data for name, data in whole.items() if name != RELEASE}
    of_manifest = Signed(payload=whole[MANIFEST], signatures=sign("manifest", whole[MANIFEST], [BUNDLE_KEY]))
    newer = Signed(payload=payload, signatures=sign("release", payload, [RELEASE_KEY]), version=2)
    for kind, release in (
        ("bare_release", payload),
        ("payload_is_manifest", to_json(of_manifest)),
        ("another_envelope_version", to_json(newer)),
    ):
        yield Attack(kind, {**bare, RELEASE: release})


def _stale_releases(whole: dict[str, bytes]) -> Iterator[Attack]:
    """Replayed, expired, contradictory and impossible releases, all signed by the right key."""
    manifest, held = whole[MANIFEST], make_files(HELD)[MANIFEST]
    old = make_files(HELD - 1, seed=2)
    day = 86_400_000

    def sent(manifest: bytes = manifest, serial: int = NEXT, **changes: Any) -> Sent:
        return {**whole, **signed_release(release_of(manifest, serial, **changes))}

    for number in (1, FOLLOWED - 1, FOLLOWED):
        yield Attack("replayed", sent(number=number))
        yield Attack("replayed_kill", sent(held, HELD, number=number, kill=True))
        yield Attack("replayed_revocation", sent(held, HELD, number=number, revoked=(HELD,)))
    for late in (0, 1, day, 3650 * day):
        yield Attack("expired", sent(), now_ms=NOW_MS + 7 * day + late)
    for created in (NOW_MS - 30 * day, NOW_MS - 8 * day):  # a clock set back, to bring an expired one back to life
        yield Attack("frozen", sent(created_ms=created, expires_ms=created + day), now_ms=created)
    for serial in (1, HELD - 1):
        yield Attack("rolled_back", {**old, **signed_release(release_of(old[MANIFEST], serial))})
    yield Attack("same_serial_other_bundle", sent(manifest, HELD))
    built = json.loads(to_json(release_of(manifest, NEXT)))
    wrong: dict[str, tuple[Any, ...]] = {
        "serial": (0, -1, 1 << 53, 1 << 64, 10**400, "10", 10.5, True, None),
        "rollout": (-1, 101, "100", None),
        "expires_ms": (0, -1, NOW_MS, 10**400, "never", None),
        "revoked": (5, "5", [[5]], None),
        "kill": ("yes", 1),
        "bundle": (None, [], {}, NEXT),
        "version": (0, 2, "1"),
    }
    wrongs = [(f"release_{kind}", {kind: value}) for kind, values in wrong.items() for value in values]
    wrongs += [("huge_serial", {"bundle": {**built["bundle"], "serial": serial}}) for serial in (0, -1, 1 << 60, 10**400)]
    sizes = (0, -1, len(manifest) - 1, len(manifest) + 1, 1 << 40)
    wrongs += [("manifest_size", {"bundle": {**built["bundle"], "manifest_bytes": size}}) for size in sizes]
    for kind, changes in wrongs:
        yield Attack(kind, {**whole, **signed_release(json.dumps({**built, **changes}).encode())})
    for text in (b"[" * 20_000, b'{"a":' * 8_000, b"\xff\xfe", b"null", b"[]", b"9" * 5_000):
        yield Attack("deep_json", {**whole, **signed_release(text)})
        yield Attack("deep_json", {**whole, RELEASE: text})


def _mixed(whole: dict[str, bytes]) -> Iterator[Attack]:
    """Parts of two bundles that are both signed by the right key."""
    other = make_files(NEXT + 1, seed=3)
    same = make_files(NEXT, seed=4)
    for theirs in (other, same):
        for name, data in theirs.items():
            if data != whole[name]:
                yield Attack("mixed", {**whole, name: data})
        yield Attack("mixed", {**whole, MANIFEST: theirs[MANIFEST], SIGNATURES: theirs[SIGNATURES]})
        yield Attack("mixed", {**theirs, RELEASE: whole[RELEASE]})
    unlike = release_of(other[MANIFEST], NEXT)  # says 6, and names a manifest that says 7
    yield Attack("mixed_serials", {**other, **signed_release(unlike)})


def _resigned(whole: dict[str, bytes], manifest: dict[str, Any] | bytes) -> Sent:
    """A manifest that its own signer got wrong, released as if it were right."""
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    signatures = to_json(Signed(signatures=sign("manifest", text, [BUNDLE_KEY])))
    return {**whole, MANIFEST: text, SIGNATURES: signatures, **signed_release(release_of(text, NEXT))}


def _bad_manifests(whole: dict[str, bytes]) -> Iterator[Attack]:
    """Signed manifests that contradict themselves, or list a path that no device may write to."""
    built = json.loads(whole[MANIFEST])
    first = built["files"][0]
    for kind, changes in (
        ("other_serial", {"serial": NEXT + 1}),
        ("serial_text", {"serial": str(NEXT)}),
        ("expired_bundle", {"expires_ms": NOW_MS}),
        ("expired_bundle", {"expires_ms": -1}),
        ("unknown_version", {"version": 2}),
        ("spec_not_listed", {"spec": "other.json"}),
        ("spec_is_model", {"spec": MODEL}),
        ("spec_outside", {"spec": "../spec.json"}),
        ("no_files", {"files": []}),
        ("no_models", {"models": []}),
        ("model_not_listed", {"models": [{**built["models"][0], "path": "models/other.onnx"}]}),
        ("model_outside", {"models": [{**built["models"][0], "path": "../../../" + MODEL}]}),
        ("model_bytes", {"models": [{**built["models"][0], "bytes": 1}]}),
        ("unknown_format", {"models": [{**built["models"][0], "format": "pickle"}]}),
        ("duplicate", {"files": [*built["files"], first]}),
        ("duplicate_in_other_case", {"files": [*built["files"], {**first, "path": first["path"].upper()}]}),
        ("lists_manifest", {"files": [*built["files"], {**first, "path": MANIFEST}]}),
        ("lists_signatures", {"files": [*built["files"], {**first, "path": "Manifest.SIG"}]}),
        ("lists_release", {"files": [*built["files"], {**first, "path": RELEASE}]}),
        ("file_is_folder", {"files": [*built["files"], {**first, "path": f"{MODEL}/x"}]}),
        ("digest", {"files": [{**first, "sha256": "0" * 64}, *built["files"][1:]]}),
        ("digest", {"files": [{**first, "sha256": "x\r\nHost: y"}, *built["files"][1:]]}),
        ("digest", {"files": [{**first, "sha256": ""}, *built["files"][1:]]}),
    ):
        yield Attack(kind, _resigned(whole, {**built, **changes}))
    for size in (-1, 0, 1, 1 << 21, 1 << 62, 10**400):
        yield Attack("claimed_size", _resigned(whole, {**built, "files": [{**first, "bytes": size}, *built["files"][1:]]}))
    for text in (b"[" * 50_000, b'{"name":' * 20_000, b"", b"\x00", b"null", whole[MANIFEST][:-3]):
        yield Attack("deep_json", _resigned(whole, text))
    for path in UNSAFE:
        yield Attack("zip_slip", _resigned(whole, {**built, "files": [*built["files"], {**first, "path": path}]}))


def _endless(whole: dict[str, bytes]) -> Iterator[Attack]:
    """Servers that send too much, too slowly, or something that is not HTTP."""

    flood, chunk = [b"x" * (1 << 16)] * ENDLESS, [b"10000\r\n" + b"x" * (1 << 16) + b"\r\n"] * ENDLESS
    bomb = gzip.compress(bytes(1 << 22))
    for name, data in whole.items():
        length = str(len(data))
        for kind, answer in (
            ("endless", Answer(flood)),
            ("endless_chunks", Answer(chunk, headers={"Transfer-Encoding": "chunked"})),
            ("drip", Answer([b" "] * ENDLESS, headers={"Content-Length": length}, pause_s=DRIP_S)),
            ("drip_header", Answer([b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * ENDLESS], raw=True, pause_s=DRIP_S)),
            ("claimed_length", Answer.whole(data, Content_Length=str(1 << 40))),
            ("decompression_bomb", Answer.whole(bomb, Content_Encoding="gzip")),
            ("redirect", Answer.whole(b"", 302, Location=f"/v1/bundle/{MANIFEST}")),
            ("range_unasked", Answer.whole(data, 206)),
            ("server_error", Answer.whole(b"no", 500)),
        ):
            yield Attack(kind, {**whole, name: answer})
    for line in (b"SSH-2.0-x\r\n", b"\x16\x03\x01", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n", b""):
        yield Attack("not_http", {**whole, RELEASE: Answer([line], raw=True)})


def _bad_models() -> Iterator[Attack]:
    """Bundles that are signed as they should be, and whose models would fail their users."""

    def sent(files: dict[str, bytes], given: Weights | None = None, **keys: Any) -> Sent:
        if given is not None:  # its maker recorded what it answers
            files = {GOLDEN: to_msgpack(golden(given)), **files}
        made = make_files(NEXT, files=files, **keys)
        return {**made, **signed_release(release_of(made[MANIFEST], NEXT))}

    def changed(name: str, change: Callable[[Any], Any]) -> Weights:
        return {**weights(), name: np.ascontiguousarray(change(weights()[name].copy()), np.float32)}

    def fill(value: float) -> Callable[[Any], Any]:
        return lambda w: np.full_like(w, value)

    for name in weights():
        for kind, value in (("nan_weights", np.nan), ("infinite_weights", np.inf), ("huge_weights", 3e38)):
            yield Attack(kind, sent({MODEL: model(changed(name, fill(value)))}))
        yield Attack("other_weights", sent({MODEL: model(changed(name, lambda w: w + 1))}))
        if name != "table":
            wide = changed(name, lambda w: np.concatenate([w, w]))
            yield Attack("wrong_shapes", sent({MODEL: model(wide)}))
            yield Attack("wrong_shapes", sent({MODEL: model(changed(name, lambda w: w[:0]))}))
    for row in (0, 1, 17, 38, 39):

        def poison(w: Any, row: int = row) -> Any:
            w[row] = np.nan
            return w

        yield Attack("nan_row", sent({MODEL: model(changed("table", poison))}))
    yield Attack("wrong_shapes", sent({MODEL: model(changed("table", lambda w: w[:-1]))}))
    for tasks in (1, 3):
        given = {name: np.resize(w, (len(w), tasks)).astype(np.float32) for name, w in weights().items()}
        yield Attack("wrong_tasks", sent({MODEL: model(given)}))
    for last in ("Identity", "Exp", "Neg", "Floor"):
        yield Attack("no_probabilities", sent({MODEL: model(changed("table", lambda w: w + 3), last=last)}))
    yield Attack("wrong_output", sent({MODEL: model(weights(), output="other", extra="nonsense")}))
    yield Attack("unknown_input", sent({MODEL: model(weights(), extra="location")}))
    yield Attack("input_of_another_form", sent({MODEL: model(weights(), extra="candidate_vector")}))
    whole = model(weights())
    for data in (b"x", b"\x80\x04pickle", whole[: len(whole) // 2], whole[::-1], gzip.compress(whole), bytes(1 << 16)):
        yield Attack("no_model", sent({MODEL: data}))
    right = golden(weights())
    case = right.cases[0]
    for name in case.inputs:
        fewer = {key: block for key, block in case.inputs.items() if key != name}
        for kind, inputs in (("golden_without_input", fewer), ("golden_shapes", {**case.inputs, name: case.scores})):
            bad = msgspec.structs.replace(right, cases=(msgspec.structs.replace(case, inputs=inputs),))
            yield Attack(kind, sent({GOLDEN: to_msgpack(bad)}))
    newer = msgspec.msgpack.encode({**msgspec.to_builtins(right), "version": 2})
    for data in (b"", b"\xc1", newer, newer[:-1], msgspec.msgpack.encode({"cases": 1})):
        yield Attack("golden_garbage", sent({GOLDEN: data}))
    yield Attack("spec_of_another", sent({}, spec=msgspec.structs.replace(SPEC, tasks=("like",), task_weights={"like": 1.0})))
    wider = msgspec.structs.replace(SPEC.candidate_categories[0], size=1000)
    yield Attack("spec_of_another", sent({}, spec=msgspec.structs.replace(SPEC, candidate_categories=(wider,))))
    yield Attack("spec_of_another", sent({}, spec=msgspec.structs.replace(SPEC, candidate_floats=SPEC.candidate_floats[:1])))
    yield Attack("too_large", sent({"models/more.bin": bytes(1 << 20)}))


def _on_disk(whole: dict[str, bytes]) -> Iterator[Attack]:
    """The device's own folder, changed while the app was not running."""

    held = f"bundles/{HELD}"

    def link(path: str) -> Callable[[Path], None]:
        def spoil(device: Path) -> None:
            outside = device / "outside"
            shutil.move(device / held / path, outside)
            (device / held / path).symlink_to(outside)

        return spoil

    def put(path: str, data: bytes) -> Callable[[Path], None]:
        def spoil(device: Path) -> None:
            (device / path).write_bytes(data)

        return spoil

    for path in (MODEL, MANIFEST, "models", "spec.json", GOLDEN):
        yield Attack("linked_on_disk", {}, spoil=link(path))
    for name, data in whole.items():
        for other in (data, b""):
            yield Attack("changed_on_disk", {}, spoil=put(f"{held}/{name.removeprefix('files/')}", other))
    for state in (b"", b"{", b'{"active": 6}', b'{"active": "../../evil"}', b'{"active": -1, "staged": 6}', b"[" * 9999):
        yield Attack("state_on_disk", {}, spoil=put("state.json", state))
