"""Data of the attacked server: a published run, a large bundle, and the keys and tokens of those who may ask."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reliability.attack.wire import LARGE_FILE, Secrets
from benchmarks.reliability.released import BUNDLE_KEY, make_bundle
from benchmarks.serving.page_requests import PageRequests
from benchmarks.serving.published import WorldSize, publish_world
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.serving.access.tokens import issue_token
from pocketrank.cloud.training.run import Run
from pocketrank.device.contract import PageRequest
from pocketrank.export.signing import public_key
from tests.cloud.serving.access.backend import Backend

__all__ = ["World", "make_world"]

_LARGE_BYTES = 32 << 20
_DAY_MS = 86_400_000
_REQUESTS = 400
_LASTS_S = 3_000


@dataclass(frozen=True)
class World:
    """All that is served, and the requests of honest devices."""

    run: Run
    bundle: Path
    """A signed bundle with the file `LARGE_FILE`."""
    options: tuple[str, ...]
    """Options of `pocketrank serve` for its tokens, users' keys and trusted keys."""
    secrets: Secrets
    requests: Sequence[PageRequest]
    """Requests of honest devices. The attacker and the victim are not among their users."""
    tokens: tuple[str, ...]
    """Token of the user of each request."""


def make_world(folder: Path, items: int, users: int, seed: int, run: Run | None = None) -> World:
    """Make a world in `folder` over `run`, or over one that is drawn."""
    run = run or publish_world(folder / "run", WorldSize(items, users=users))
    published, record = Published.open(run.published)
    file = folder / "tokens.json"
    now_ms = round(1e3 * time.time())
    device, publish = (issue_token(file, [scope], now_ms=now_ms, lasts_ms=_DAY_MS).token for scope in ("device", "publish"))
    backend = Backend(folder / "user-keys.json", ("EdDSA",))
    known = [int(user) for user in published.user_id[1:102]]
    requests = [
        one for one in PageRequests(published, record, seed).requests(_REQUESTS, feedback=False) if one.user_id not in known[:2]
    ]
    expires = int(time.time()) + _LASTS_S
    signed = {user: backend.token(user, exp=expires) for user in {one.user_id for one in requests} | set(known[:2])}
    bundle = make_bundle(
        folder / "bundle",
        serial=now_ms // 1000 - 100,
        files={LARGE_FILE: os.urandom(1 << 20) * (_LARGE_BYTES >> 20)},
        split_version=record.split_version,
    )
    options = ("--tokens", file, "--user-keys", backend.file, "--trust-key", public_key(BUNDLE_KEY), "--bundle", bundle)
    secrets = Secrets(
        split_version=record.split_version,
        items=tuple(int(item) for item in published.item_id[1:1001]),
        users=tuple(known),
        user=signed[known[0]],
        victim=signed[known[1]],
        expired=backend.token(known[1], exp=int(time.time()) - 600),
        kid="EdDSA",
        public=backend.jwks[0]["x"],
        device=device,
        publish=publish,
    )
    tokens = tuple(signed[one.user_id] for one in requests)
    return World(run, bundle, tuple(map(str, options)), secrets, requests, tokens)
