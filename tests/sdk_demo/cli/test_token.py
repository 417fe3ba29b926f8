import json
from pathlib import Path
from typing import Any

import pytest

from pocketrank.cloud.serving.access.limits import RateLimit
from pocketrank.cloud.serving.access.tokens import AuthError, TokenFile, list_tokens
from pocketrank.cloud.serving.access.user_keys import UserKeysConfig
from pocketrank.cloud.serving.access.user_tokens import UserKeyFile
from pocketrank.sdk_demo.cli import main

DAY_MS = 86_400_000


def _token(*argv: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["token", *map(str, argv)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def _made(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert _token("create", *argv, "--json", "-") == 0
    report = json.loads(capsys.readouterr().out)
    assert isinstance(report, dict)
    return report


def test_from_create_to_revoke_a_server_does_as_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokens.json"
    made = _made(capsys, path, "--scope", "device", "--scope", "admin", "--note", "gateway", "--rate", 20)
    record = list_tokens(path)[0]
    assert (record.id, record.scopes, record.note, record.rate) == (
        made["id"],
        ("device", "admin"),
        "gateway",
        RateLimit(20, 200),
    )
    assert record.expires_ms - record.created_ms == 90 * DAY_MS
    header = f"Bearer {made['token']}".encode()
    assert TokenFile(path).check(header, "device").id == made["id"]
    with pytest.raises(AuthError, match="the scope `publish`"):
        TokenFile(path).check(header, "publish")
    assert _token("revoke", path, made["id"]) == 0
    assert capsys.readouterr().out.startswith(f"token {made['id']}: revoked 20")
    with pytest.raises(AuthError, match="revoked"):
        TokenFile(path).check(header, "device")


def test_the_secret_is_shown_once_and_never_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokens.json"
    assert _token("create", path, "--scope", "device") == 0
    first = capsys.readouterr()
    token = first.out.removeprefix("token: ").strip()
    assert token.startswith("prk_")
    assert "not shown again" in first.err
    assert _token("create", path, "--scope", "publish", "--out", tmp_path / "publish.token") == 0
    second = (tmp_path / "publish.token").read_text().strip()
    assert (tmp_path / "publish.token").stat().st_mode & 0o777 == 0o600
    assert _token("list", path) == 0
    assert _token("list", path, "--json", "-") == 0
    assert _token("revoke", path, second.split("_")[1], "--json", tmp_path / "r.json") == 0
    shown = capsys.readouterr()
    everything = shown.out + shown.err + path.read_text() + (tmp_path / "r.json").read_text()
    for one in (token, second):
        assert one.split("_")[2] not in everything
        assert one.split("_")[1] in everything


def test_a_list_says_which_are_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tokens.json"
    ids = [_made(capsys, path, "--scope", "device")["id"] for _ in range(3)]
    path.write_text(path.read_text().replace(str(list_tokens(path)[2].expires_ms), "1"))
    assert _token("revoke", path, ids[1]) == 0
    capsys.readouterr()
    assert _token("list", path, "--json", "-") == 0
    captured = capsys.readouterr()
    listed = json.loads(captured.out)["tokens"]
    assert [(token["id"], token["state"]) for token in listed] == list(
        zip(ids, ("in force", "revoked", "expired"), strict=True)
    )
    for told in (*ids, "in force", "revoked", "expired"):
        assert told in captured.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["create", "t", "--scope", "device", "--burst", "5"], "--burst: expected `--rate` as well"),
        (["create", "t", "--scope", "device", "--note", "n" * 201], "--note: expected at most 200 characters"),
        (["create", "t", "--scope", "device", "--json", "r.json"], "--json: expected `-`, or `--out` as well"),
        (["create", "t", "--scope", "device", "--out", "taken"], "--out: expected a new file"),
        (["list", "t"], "Expected a file of tokens, got No such file or directory"),
        (["revoke", "t", "0" * 12], "Expected a file of tokens, got No such file or directory"),
        (["list", "taken"], "Expected a file of tokens"),
    ],
)
def test_wrong_input_ends_in_one_line_and_makes_nothing(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("{")
    (tmp_path / "taken").chmod(0o600)
    assert _token(*argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "t").exists()
    assert (tmp_path / "taken").read_text() == "{"


@pytest.mark.parametrize(
    "argv", [["create", "t"], ["create", "t", "--scope", "root"], ["create", "t", "--scope", "device", "--expires-days", "0"]]
)
def test_wrong_usage_says_how(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert _token(*argv) == 2
    assert "Usage: pocketrank token create" in capsys.readouterr().err


def test_a_file_that_cannot_have_a_token_leaves_no_secret_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t").write_text("{")
    (tmp_path / "t").chmod(0o600)
    assert _token("create", tmp_path / "t", "--scope", "device", "--out", tmp_path / "secret") == 2
    assert not (tmp_path / "secret").exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", ["create", "list", "revoke"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _token(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"\n  pocketrank token {command}" in text
    assert "Writes" in text


def test_a_users_token_is_signed_by_one_key_that_is_added_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, keys = tmp_path / "new" / "backend.jwk", tmp_path / "user-keys.json"
    tokens = []
    for user_id in (7, -7):
        assert _token("user", "--key", key, "--keys", keys, "--issuer", "me", "--", user_id) == 0
        tokens.append(f"Bearer {capsys.readouterr().out.strip()}".encode())
    assert len(json.loads(keys.read_text())["keys"]) == 1
    assert _token("user", "9", "--key", tmp_path / "second.jwk", "--keys", keys) == 0
    tokens.append(f"Bearer {capsys.readouterr().out.strip()}".encode())
    assert len(json.loads(keys.read_text())["keys"]) == 2
    file = UserKeyFile(UserKeysConfig(keys))
    assert [file.check(token, "device").user_id for token in tokens] == [7, -7, 9]
    assert [path.stat().st_mode & 0o777 for path in (key, keys)] == [0o600, 0o600]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": 5}', '{"kid": "a", "kty": "OKP", "crv": "Ed25519", "x": "AA"}'])
def test_a_key_of_users_tokens_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    key = tmp_path / "backend.jwk"
    key.write_text(text)
    key.chmod(0o600)
    assert _token("user", "7", "--key", key) == 2
    assert capsys.readouterr().err.startswith("error: Expected a private ")
    key.chmod(0o640)
    assert _token("user", "7", "--key", key) == 2
    assert "chmod 600" in capsys.readouterr().err


def test_a_file_that_is_no_key_set_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = tmp_path / "user-keys.json"
    for text in ("", "[]", '{"keys": 5}', '{"keys": [5]}'):
        keys.write_text(text)
        keys.chmod(0o600)
        assert _token("user", "7", "--key", tmp_path / "backend.jwk", "--keys", keys) == 2
        assert capsys.readouterr().err == f"error: Expected a JSON Web Key Set, got other content - at {keys}\n"
        assert keys.read_text() == text
