import os
import sys
import time
from pathlib import Path

import pytest

from pocketrank.cloud.serving.access.tokens import issue_token
from pocketrank.device.codec import to_msgpack
from pocketrank.export.signing import generate_key, read_key, sign_manifest
from pocketrank.sdk_demo.cli import main
from pocketrank.sdk_demo.uploader import BundleUploader, UploadError
from tests.cloud.serving.live import MSGPACK, request, write_bundle
from tests.cloud.serving.running import started, until
from tests.cloud.small_published import small_run


@pytest.mark.parametrize("option", ["--tls-cert", "--tls-key"])
def test_a_certificate_without_its_key_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--run", str(tmp_path), option, str(tmp_path / "one.pem")])
    told = capsys.readouterr().err
    assert (ended.value.code, told.count("\n")) == (2, 1)
    assert told.startswith("error: Expected the certificate and its key, got a ")
    assert str(tmp_path / "one.pem") in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trust-key", "abc"], "--trust-key: expected a public key of 32 bytes in hex, or a file KEY.pub, got `abc`"),
        (["--trust-key", "nowhere.pub"], "--trust-key: expected a public key, got `nowhere.pub: No such file or directory`"),
        (["--trust-release-key", "00" * 32], "--trust-release-key: expected `--trust-key` as well"),
        (
            ["--trust-key", "00" * 32, "--trust-release-key", "zz" * 32],
            "--trust-release-key: expected a public key of 32 bytes",
        ),
        (["--user-issuer", "me"], "--user-keys: expected a file of keys"),
        (["--app-tokens"], "--user-keys: expected a file of keys"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = small_run(tmp_path / "run").folder
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--run", str(run), *options])
    told = capsys.readouterr().err
    assert (ended.value.code, told.count("\n")) == (2, 1)
    assert told.startswith(f"error: {message}")


@pytest.mark.parametrize(("options", "got"), [([], "neither"), (["--run", "a", "--runs", "b"], "both")])
def test_either_a_run_or_a_folder_of_runs_is_served(capsys: pytest.CaptureFixture[str], options: list[str], got: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *options])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: --run: expected either --run RUN or --runs FOLDER, got `{got}`\n"


def test_a_server_of_a_folder_of_runs_follows_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*args: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["runs", *args])
        assert ended.value.code == 0

    for seed, name in enumerate(("monday", "tuesday")):
        small_run(tmp_path / "runs" / name, seed=seed, split_version=name)
    monkeypatch.chdir(tmp_path)
    call("activate", "monday")
    code = "import sys; from pocketrank.sdk_demo.cli import main; main(sys.argv[1:])"
    with started([sys.executable, "-c", code, "serve", "--runs", "runs", "--port", "0"]) as server:

        def served() -> object:
            return server.send("GET", "/healthz").json()["run"]

        assert served() == "monday"
        assert (tmp_path / "runs" / "feedback.db").is_file()
        call("activate", "tuesday")
        until(lambda: served() == "tuesday", "the activated run")
        call("rollback")
        until(lambda: served() == "monday", "the run of before")


def test_a_private_key_is_not_taken_for_a_public_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate_key(tmp_path / "key")
    with pytest.raises(SystemExit):
        main(["serve", "--run", str(small_run(tmp_path / "run").folder), "--trust-key", str(tmp_path / "key")])
    assert "or a file KEY.pub" in capsys.readouterr().err


def test_a_server_with_the_backends_keys_and_trusted_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def user_token(user_id: int, *options: str) -> dict[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["token", "user", str(user_id), "--key", str(tmp_path / "backend.jwk"), "--audience", "feed", *options])
        assert ended.value.code == 0
        return {"Authorization": f"Bearer {capsys.readouterr().out.strip()}"}

    seven = user_token(7, "--keys", str(tmp_path / "user-keys.json"))
    run, keys = small_run(tmp_path / "run").folder, ["--user-keys", tmp_path / "user-keys.json", "--user-audience", "feed"]
    now_ms = time.time_ns() // 1_000_000
    publish = issue_token(tmp_path / "tokens", ["publish"], now_ms=now_ms, lasts_ms=3_600_000).token
    generate_key(tmp_path / "key")
    args = ["serve", "--run", run, "--port", 0, "--tokens", tmp_path / "tokens", "--trust-key", tmp_path / "key.pub", *keys]
    code = "import sys; from pocketrank.sdk_demo.cli import main; main(sys.argv[1:])"
    with started([sys.executable, "-c", code, *map(str, args)]) as server:

        def asked(user_id: int, headers: dict[str, str]) -> int:
            return server.send("POST", "/v1/page", to_msgpack(request(user_id)), {**headers, **MSGPACK}).status

        assert [asked(7, seven), asked(8, seven), asked(8, user_token(8)), asked(7, {})] == [200, 403, 200, 401]
        bundle = write_bundle(tmp_path / "bundle", {"spec.json": b"{}"})
        with BundleUploader(f"http://127.0.0.1:{server.port}", publish) as uploader:
            with pytest.raises(UploadError, match="got 403: Expected signatures of 1 trusted manifest keys, got 0"):
                uploader(bundle)
            sign_manifest(bundle, [read_key(tmp_path / "key")])
            assert uploader(bundle).serial == 1
    assert os.stat(tmp_path / "backend.jwk").st_mode & 0o777 == 0o600
    assert '"d"' not in (tmp_path / "user-keys.json").read_text()
