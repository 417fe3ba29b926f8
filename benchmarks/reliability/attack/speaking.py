"""Attacks that speak for another: for another user, with forged tokens, by guessed ids, and for the operator of the server."""

from __future__ import annotations

import hmac
import time
from base64 import b64encode, urlsafe_b64encode
from hashlib import sha256
from typing import Any

import msgspec
from nacl.signing import SigningKey

from benchmarks.reliability.attack.wire import AttackOrder, Client, Tally, bearer, post, request_head
from benchmarks.reliability.released import BUNDLE_KEY, make_files
from pocketrank.device.bundle.files import MANIFEST, SIGNATURES
from pocketrank.device.codec import from_msgpack, to_json, to_msgpack
from pocketrank.device.contract import FeedbackBatch, FeedbackEvent, FeedbackReceipt, Page, PageRequest, Signed
from pocketrank.export.signing import sign

__all__ = ["guessed_ids", "publishing", "spoofing"]

_LAST_SERIAL = 2**63 - 1
_EVENTS = 4


def spoofing(order: AttackOrder) -> dict[str, Any]:
    """Send the victim's feedback and ask for the victim's page, `size` times with each of: the attacker's own token, none, the
    token of a fleet where only users' tokens are accepted, and forged tokens.
    """
    secrets, tally = order.secrets, Tally()
    client, victim = Client(order.port, tally), secrets.users[1]
    tokens = {"own": secrets.user, "none": None, "fleet": secrets.device, **_forged(secrets.victim, secrets)}
    for token in tokens.values():
        for number in range(order.size):
            events = tuple(_event(f"spoof-{number}-{i}", victim, secrets.items[i]) for i in range(_EVENTS))
            status, body = client(post("/v1/feedback", to_msgpack(FeedbackBatch(events=events)), token))
            tally.add(spoofed=_EVENTS, spoofed_accepted=from_msgpack(body, FeedbackReceipt).accepted if status == 200 else 0)
            status, body = client(post("/v1/page", to_msgpack(_page(victim, secrets.split_version)), token))
            tally.add(pages_asked=1, vectors_leaked=int(status == 200 and from_msgpack(body, Page).user_vector is not None))
            # A page of the attacker that carries feedback of the victim.
            own = msgspec.structs.replace(_page(secrets.users[0], secrets.split_version), feedback=events)
            client(post("/v1/page", to_msgpack(own), token))
    client.close()
    # What the attack left of the victim's ids is what the victim cannot use any more.
    taken = _duplicates(order, tally, [f"spoof-{number}-{i}" for number in range(order.size) for i in range(_EVENTS)])
    tally.add(spoofed_accepted=taken)
    return tally.report(tokens=len(tokens))


def guessed_ids(order: AttackOrder) -> dict[str, Any]:
    """Send `size` events of the attacker's own with the ids that the victim will use, and then the victim's."""
    secrets, tally = order.secrets, Tally()
    client, ids = Client(order.port, tally), [f"session/{i}" for i in range(order.size)]
    events = tuple(_event(id_, secrets.users[0], secrets.items[0]) for id_ in ids)
    status, body = client(post("/v1/feedback", to_msgpack(FeedbackBatch(events=events)), secrets.user))
    client.close()
    taken = from_msgpack(body, FeedbackReceipt).accepted if status == 200 else 0
    return tally.report(guessed=taken, spoofed_accepted=_duplicates(order, tally, ids))


def publishing(order: AttackOrder) -> dict[str, Any]:
    """Publish bundles with a publish token and no trusted key, and with a user's token; then the operator's next bundle."""
    secrets, tally = order.secrets, Tally()
    client, now = Client(order.port, tally), int(time.time())
    other = SigningKey(b"o" * 32)
    for serial in (now, _LAST_SERIAL):
        files = make_files(serial, split_version=secrets.split_version)
        _upload(client, files, secrets.publish)
        manifest = files[MANIFEST]
        records = [
            {},
            {"signatures": to_json(Signed(signatures=()))},
            {"signatures": to_json(Signed(signatures=sign("manifest", manifest, [other])))},
            {"signatures": to_json(Signed(signatures=sign("release", manifest, [BUNDLE_KEY])))},  # of another role
            {"signatures": make_files(serial - 1, split_version=secrets.split_version)[SIGNATURES]},  # of another bundle
        ]
        for record in records:
            for token in (secrets.publish, secrets.user, secrets.device, None):
                status, _ = client(_publish(manifest, record, token))
                tally.add(unsigned=1, unsigned_accepted=int(status == 200))
    # A bundle that is rightly signed, with a serial that would be the last.
    files = make_files(_LAST_SERIAL, split_version=secrets.split_version)
    status, _ = client(_publish(files[MANIFEST], {"signatures": files[SIGNATURES]}, secrets.publish))
    tally.add(last_serials_accepted=int(status == 200))
    files = make_files(now, split_version=secrets.split_version)
    status, answer = client(_publish(files[MANIFEST], {"signatures": files[SIGNATURES]}, secrets.publish))
    client.close()
    return tally.report(operator_locked_out=int(status != 200), **({} if status == 200 else {"got": answer.decode()[:300]}))


def _forged(valid: str, secrets: Any) -> dict[str, str]:
    """Return tokens of the victim that the backend did not sign, made of what anybody may know."""
    head, claims, signature = valid.split(".")
    public = urlsafe_b64encode(secrets.public.encode()).decode().rstrip("=")
    stolen = secrets.user.split(".")[2]

    def made(header: dict[str, str], key: bytes | None = None) -> str:
        text = f"{_base64(msgspec.json.encode(header))}.{claims}"
        return f"{text}.{'' if key is None else _base64(hmac.digest(key, text.encode(), sha256))}"

    return {
        "alg_none": made({"alg": "none", "kid": secrets.kid}),
        "alg_none_without_kid": made({"alg": "none"}),
        "hs256_by_public_key": made({"alg": "HS256", "kid": secrets.kid}, secrets.public.encode()),
        "hs256_by_encoded_public_key": made({"alg": "HS256", "kid": secrets.kid}, public.encode()),
        "hs256_by_nothing": made({"alg": "HS256", "kid": ""}, b""),
        "foreign_kid": made({"alg": "HS256", "kid": "attacker"}, b"k" * 32),
        "key_in_header": made({"alg": "HS256", "kid": secrets.kid, "jwk": public}, b"k" * 32),
        "signature_of_another": f"{head}.{claims}.{stolen}",
        "no_signature": f"{head}.{claims}.",
        "cut_signature": f"{head}.{claims}.{signature[:-4]}",
        "expired": secrets.expired,
    }


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _event(id_: str, user: int, item: int) -> FeedbackEvent:
    return FeedbackEvent(event_id=id_, user_id=user, session_id="s", item_id=item, position=0, impression_ms=1, watch_ms=1)


def _page(user: int, split_version: str) -> PageRequest:
    return PageRequest(request_id="spoof", user_id=user, session_id="s", now_ms=0, size=5, split_version=split_version)


def _duplicates(order: AttackOrder, tally: Tally, ids: list[str]) -> int:
    """Return how many of these ids the victim cannot use, because the server knows them."""
    client, secrets = Client(order.port, tally), order.secrets
    events = tuple(_event(id_, secrets.users[1], secrets.items[1]) for id_ in ids)
    status, body = client(post("/v1/feedback", to_msgpack(FeedbackBatch(events=events)), secrets.victim))
    client.close()
    return len(ids) - from_msgpack(body, FeedbackReceipt).accepted if status == 200 else len(ids)


def _upload(client: Client, files: dict[str, bytes], token: str) -> None:
    for path, data in files.items():
        if path.startswith("files/"):
            headers = {"Content-Type": "application/octet-stream", **bearer(token)}
            client(request_head("PUT", f"/v1/bundle/blobs/{sha256(data).hexdigest()}", len(data), headers) + data)


def _publish(manifest: bytes, record: dict[str, bytes], token: str | None) -> bytes:
    fields = {"manifest": manifest, **record}
    body = msgspec.json.encode({name: b64encode(data).decode() for name, data in fields.items()})
    headers = {"Content-Type": "application/json", **bearer(token)}
    return request_head("PUT", "/v1/bundle", len(body), headers) + body
