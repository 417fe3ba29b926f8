"""Why a device has no model, or not the released one: `Current.why` and the log."""

import logging
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability.released import (
    KEYS,
    MODEL,
    NOW_MS,
    Answer,
    Server,
    make_bundle,
    make_files,
    model,
    release_of,
    serve,
    signed_release,
    use,
    weights,
)
from pocketrank.device.bundle.files import MANIFEST, RELEASE, SIGNATURES, BundleError
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import ClientError
from pocketrank.device.session.session import FeedSession
from pocketrank.device.updates import BundleStore, TrialConfig, UpdateConfig, Updates

CONFIG = UpdateConfig(trial=TrialConfig(runs=4, failures=2, ms_max=1e6, slower=1e6))
NONE = "No bundle is installed"
NO_RELEASE = "the server has no release: make one with `pocketrank release`"
NOT_CHECKED = f"{NONE} and no check was made: call `start` or `check`."


def served(
    serial: int = 2, *, files: Mapping[str, bytes] = {}, bundle_expires_ms: int | None = None, **changes: Any
) -> dict[str, Any]:
    """What a server sends of a bundle and a release of it. `changes` are of the release."""
    sent = make_files(serial, files=files, expires_ms=bundle_expires_ms)
    return sent | signed_release(release_of(sent[MANIFEST], serial, **changes))


def without(*names: str) -> dict[str, Any]:
    return {name: data for name, data in served().items() if name not in names}


@dataclass
class Phone:
    """A device that has no bundle yet."""

    folder: Path
    server: Server
    client: CloudClient
    now_ms: int = NOW_MS

    def start(self, keys: TrustedKeys = KEYS) -> Updates:
        store = BundleStore(self.folder / "device", keys, clock=lambda: self.now_ms)
        return Updates(store, device_id="device", config=CONFIG)

    def checked(self, files: Mapping[str, Any], keys: TrustedKeys = KEYS) -> str:
        """Why it has no model after a check, which has the same reason after another check and after `current`."""
        self.server.files = dict(files)
        updates = self.start(keys)
        whys = set()
        for _ in range(2):
            with suppress(ClientError, BundleError):
                updates.check(self.client)
            current = updates.current()
            assert current.ranker is None
            whys.add(current.why)
        (why,) = whys
        return why


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Phone]:
    with serve() as server, CloudClient(server.url, timeout_s=20) as client:
        yield Phone(tmp_path, server, client)


def test_no_check_was_made(phone: Phone) -> None:
    assert phone.start().current() == (None, None, "none", NOT_CHECKED)


def test_the_first_session_of_an_app_that_forgot_to_start(phone: Phone, caplog: pytest.LogCaptureFixture) -> None:
    FeedSession(None, user_id=7, session_id="s", updates=phone.start(TrustedKeys.one("9f" * 32)))
    assert [(r.name, r.levelno, r.message) for r in caplog.records] == [("pocketrank.device", logging.WARNING, NOT_CHECKED)]


@pytest.mark.parametrize(
    ("files", "keys", "clause", "detail"),
    [
        ({}, KEYS, NO_RELEASE, "status 200, got 404: nothing here - at GET"),
        (without(RELEASE), KEYS, NO_RELEASE, "got 404"),
        (
            without(RELEASE, SIGNATURES), KEYS,
            "the server's bundle is unsigned: export it with `--key` and sign a release",
            "Expected a signed bundle, got an unsigned one - at GET http",
        ),
        (without(SIGNATURES), KEYS, "the server's bundle is unsigned: export it with `--key` and sign a release", SIGNATURES),
        (
            served(), TrustedKeys.one("9f" * 32),
            "the server's release is not signed by the trusted keys",
            "Expected signatures of 1 trusted release keys, got 0 - at release.json",
        ),
        (
            served(), TrustedKeys(("9f" * 32,), KEYS.release),
            "the server's bundle is not signed by the trusted keys",
            "Expected signatures of 1 trusted manifest keys, got 0 - at ",
        ),
        (served(created_ms=0, expires_ms=NOW_MS), KEYS, "the server's release is expired", "a time before 18"),
        (served(bundle_expires_ms=NOW_MS), KEYS, "the released bundle is expired", "a time before 18"),
        (served(rollout=0), KEYS, "the roll-out of bundle 2 has not reached this device", ""),
        (served(revoked=(2,)), KEYS, "bundle 2 is revoked", ""),
        (served(files={MODEL: model(weights(9))}), KEYS, "bundle 2 was rejected on this device", "golden scores within"),
        ({RELEASE: Answer.whole(b"no", 401)}, KEYS, "the server answered with status 401", "got 401: no - at GET"),
        (without(SIGNATURES) | {RELEASE: Answer.whole(b"no", 503)}, KEYS, "the server answered with status 503", "got 503"),
        (without(f"files/{MODEL}"), KEYS, "the server answered with status 404", MODEL),
        ({RELEASE: bytes(1 << 17)}, KEYS, "the server gave an answer that cannot be used", "at most 65536 bytes"),
        ({RELEASE: b"<html>"}, KEYS, "the server's release or bundle is malformed", "release.json"),
        ({RELEASE: b'{"version": 2}'}, KEYS, "the server's release or bundle needs another version of this SDK", "version 2"),
    ],
    ids=[
        "no_bundle", "no_release", "unsigned", "unsigned_but_released", "release_by_another", "bundle_by_another",
        "release_expired", "bundle_expired", "roll_out", "revoked", "probe", "status", "status_of_an_unsigned", "no_file",
        "too_long", "malformed", "version",
    ],
)  # fmt: skip
def test_why_there_is_no_model(phone: Phone, files: Mapping[str, Any], keys: TrustedKeys, clause: str, detail: str) -> None:
    why = phone.checked(files, keys)
    start = f"{NONE} and {clause}"
    assert why.startswith(start)
    assert why.removeprefix(start).startswith(" (Expected ") if detail else why == f"{start}."
    assert detail in why
    assert why.endswith(")." if detail else ".")


def test_a_server_that_is_unreachable(phone: Phone) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    phone.client = CloudClient(f"http://127.0.0.1:{port}")
    assert phone.checked({}).startswith(f"{NONE} and the server is unreachable (Expected a whole answer, got ")


def test_a_release_that_stops_all_models(phone: Phone) -> None:
    assert phone.checked(served(kill=True)) == "Release 10 stops all models."


def test_a_release_that_goes_back(phone: Phone) -> None:
    phone.checked(served(number=10, rollout=0))
    assert "and the server's release is older than the last one, or inconsistent with it (" in phone.checked(served(number=9))


def test_a_disk_that_cannot_be_written(phone: Phone) -> None:
    updates = phone.start()
    (updates.store.root / "state.json.tmp").mkdir()  # nothing can be written over a folder
    assert f"{NONE} and the device's disk cannot be written (" in phone.checked(served())


def test_a_disk_that_is_full_when_a_bundle_is_ready(phone: Phone) -> None:
    updates = phone.start()
    phone.server.files = served()
    updates.check(phone.client)
    (updates.store.root / "state.json.tmp").mkdir()
    assert updates.current().why.startswith(f"{NONE} and the device's disk cannot be written (Expected ")
    (updates.store.root / "state.json.tmp").rmdir()
    assert updates.current().why == "Bundle 2 is in use."


def _in_use(phone: Phone) -> Updates:
    """A device that runs bundle 1 and trusts it."""
    updates = phone.start()
    updates.add(make_bundle(phone.folder / "first", 1))
    ranker = updates.current().ranker
    assert ranker is not None
    use(ranker, 4)
    assert updates.current().why == "Bundle 1 is in use and no check was made: call `start` or `check`."
    return updates


def test_one_that_failed_its_trial_is_named_until_a_newer_one_is_in_use(phone: Phone) -> None:
    updates = _in_use(phone)
    phone.server.files = served()
    updates.check(phone.client)
    assert updates.current().why == "Bundle 2 is in use."
    ranker = updates.current().ranker
    assert ranker is not None
    use(ranker, 2, fails=True)
    rejected = "Bundle 1 is in use and bundle 2 was rejected on this device (2 failures in a row: run 2)."
    assert updates.current().why == rejected
    assert updates.check(phone.client) == "rejected"
    assert updates.current().why == rejected
    updates = phone.start()
    assert updates.current().why == rejected.replace(" and ", ", ")[:-1] + " and no check was made: call `start` or `check`."
    phone.server.files = served(3, number=11)
    updates.check(phone.client)
    assert updates.current().why == "Bundle 3 is in use."


def test_an_expired_bundle_and_a_check_that_fails(phone: Phone) -> None:
    updates = phone.start()
    phone.server.files = served(bundle_expires_ms=NOW_MS + 5)
    updates.check(phone.client)
    assert updates.current().why == "Bundle 2 is in use."
    phone.now_ms += 5
    assert updates.current()[:3] == (2, None, "expired")
    assert updates.current().why == "Bundle 2 is expired."
    phone.server.files = {}
    with pytest.raises(ClientError):
        updates.check(phone.client)
    assert updates.current().why.startswith("Bundle 2 is expired and the server has no release")


def _log(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(r.levelno, r.message.partition(" (")[0]) for r in caplog.records if r.name == "pocketrank.device"]


def test_one_record_for_each_change_of_the_reason(phone: Phone, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pocketrank.device")

    def check(updates: Updates, files: Mapping[str, Any]) -> None:
        phone.server.files = dict(files)
        for _ in range(3):
            phone.now_ms += 1  # which is in the text of some errors
            with suppress(ClientError, BundleError):
                updates.check(phone.client)
            updates.current()

    updates = phone.start()
    assert _log(caplog) == []
    expired = served(created_ms=0, expires_ms=NOW_MS)
    for files in ({}, expired, {}, served(kill=True, number=11), served(number=12), {}, served(number=12)):
        check(updates, files)
    warning, info = logging.WARNING, logging.INFO
    assert _log(caplog) == [
        (warning, f"{NONE} and {NO_RELEASE}"),
        (warning, f"{NONE} and the server's release is expired"),
        (warning, f"{NONE} and {NO_RELEASE}"),
        (warning, "Release 11 stops all models."),
        (info, "Bundle 2 is in use."),
        (warning, f"Bundle 2 is in use and {NO_RELEASE}"),
        (info, "Bundle 2 is in use."),
    ]


def test_a_check_in_the_background_logs_without_a_call_of_current(phone: Phone, caplog: pytest.LogCaptureFixture) -> None:
    updates = phone.start()
    checked = threading.Event()
    updates.start(phone.client, report=lambda result: checked.set())
    assert checked.wait(20)
    updates.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
