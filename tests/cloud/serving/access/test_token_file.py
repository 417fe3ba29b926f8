import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pocketrank.cloud.serving.access.limits import RateLimit
from pocketrank.cloud.serving.access.tokens import NoSuchTokenError, TokenFileError, issue_token, list_tokens, revoke_token

_MAKE_MANY = """
import sys
from pathlib import Path
from pocketrank.cloud.serving.access.tokens import issue_token, revoke_token
for n in range(int(sys.argv[2])):
    made = issue_token(Path(sys.argv[1]), ["device"], now_ms=1, lasts_ms=1)
    if n % 2:
        revoke_token(Path(sys.argv[1]), made.record.id, now_ms=2)
"""


def test_what_is_issued_is_listed_and_the_file_has_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tokens.json"
    made = issue_token(path, ["publish", "device"], now_ms=5, lasts_ms=10, note="gateway", rate=RateLimit(2.5, 10))
    assert re.fullmatch(r"prk_[0-9a-f]{12}_[0-9a-f]{64}", made.token)
    record = made.record
    assert made.token.split("_")[1] == record.id
    assert record.sha256 == hashlib.sha256(made.token.encode()).hexdigest()
    assert (record.scopes, record.created_ms, record.expires_ms, record.revoked_ms) == (("device", "publish"), 5, 15, None)
    other = issue_token(path, ["admin"], now_ms=6, lasts_ms=1)
    assert list_tokens(path) == (record, other.record)
    assert path.stat().st_mode & 0o777 == 0o600
    assert made.token.split("_")[2] not in path.read_text()


def test_a_revoked_token_stays_listed_with_the_first_time(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    made = [issue_token(path, ["device"], now_ms=1, lasts_ms=9).record for _ in range(3)]
    assert revoke_token(path, made[1].id, now_ms=7).revoked_ms == 7
    assert revoke_token(path, made[1].id, now_ms=8).revoked_ms == 7
    assert [record.revoked_ms for record in list_tokens(path)] == [None, 7, None]
    before = path.read_bytes()
    with pytest.raises(NoSuchTokenError, match="the id of a token, got `nobody`"):
        revoke_token(path, "nobody", now_ms=9)
    assert path.read_bytes() == before


def test_two_processes_lose_no_edit_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    args = [sys.executable, "-c", _MAKE_MANY, str(path), "20"]
    running = [subprocess.Popen(args) for _ in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    tokens = list_tokens(path)
    assert len({record.id for record in tokens}) == 60
    assert sum(record.revoked_ms is not None for record in tokens) == 30


GOOD = {"id": "0" * 12, "sha256": "0" * 64, "scopes": ["device"], "created_ms": 1, "expires_ms": 2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"id": "../../etc/pwd"}, r"\$\.tokens\[0\]\.id"),
        ({"sha256": "0" * 63}, r"\$\.tokens\[0\]\.sha256"),
        ({"scopes": []}, r"\$\.tokens\[0\]\.scopes"),
        ({"scopes": ["root"]}, "Invalid enum value 'root'"),
        ({"expires_ms": None}, r"\$\.tokens\[0\]\.expires_ms"),
        ({"revokd_ms": 5}, "unknown field `revokd_ms`"),
        ({"rate": {"per_s": 0, "burst": 1}}, r"\$\.tokens\[0\]\.rate"),
    ],
)
def test_a_file_with_a_wrong_token_is_refused_and_never_written_over(
    tmp_path: Path, wrong: dict[str, object], message: str
) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps({"version": 1, "tokens": [{**GOOD, **wrong}]}))
    path.chmod(0o600)
    before = path.read_bytes()
    for act in (
        lambda: list_tokens(path),
        lambda: issue_token(path, ["device"], now_ms=1, lasts_ms=1),
        lambda: revoke_token(path, "0" * 12, now_ms=1),
    ):
        with pytest.raises(TokenFileError, match=message) as caught:
            act()
        assert str(path) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b'{"version": 2, "tokens": []}', b"[" * 100_000])
def test_what_is_no_file_of_tokens_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "tokens.json"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(TokenFileError, match="a file of tokens"):
        list_tokens(path)


def test_two_tokens_of_one_id_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_bytes(msgspec.json.encode({"version": 1, "tokens": [GOOD, GOOD]}))
    path.chmod(0o600)
    with pytest.raises(TokenFileError, match="each token listed once"):
        list_tokens(path)


def test_a_file_that_is_not_there_or_open_to_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    with pytest.raises(TokenFileError, match="No such file"):
        list_tokens(path)
    issue_token(path, ["device"], now_ms=1, lasts_ms=1)
    for mode in (0o604, 0o602, 0o620):
        path.chmod(mode)
        with pytest.raises(TokenFileError, match="chmod 600"):
            list_tokens(path)
    path.chmod(0o440)  # as Kubernetes mounts it
    assert len(list_tokens(path)) == 1


def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenFileError, match="that can be written"):
        issue_token(tmp_path / "file" / "tokens.json", ["device"], now_ms=1, lasts_ms=1)


def test_a_link_stays_one(tmp_path: Path) -> None:
    issue_token(tmp_path / "real.json", ["device"], now_ms=1, lasts_ms=1)
    (tmp_path / "link.json").symlink_to("real.json")
    issue_token(tmp_path / "link.json", ["device"], now_ms=1, lasts_ms=1)
    assert os.readlink(tmp_path / "link.json") == "real.json"
    assert len(list_tokens(tmp_path / "real.json")) == 2
