import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.reliability.released import make_bundle
from pocketrank.cloud.serving.access.tokens import issue_token
from pocketrank.cloud.serving.bundles.store import BundleStoreConfig
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.sdk_demo.cli import main
from pocketrank.sdk_demo.uploader import BundleUploader
from tests.cloud.serving.live import Live, live, write_bundle
from tests.cloud.small_published import small_run

FILES = {"spec.json": b"{}", "models/split.fp32.onnx": b"model" * 1000}


class Site:
    """A server, and a token for it in a file."""

    def __init__(self, folder: Path, server: Live) -> None:
        self.server, self.token, self.admin = server, folder / "publish.token", folder / "admin.token"
        self.url = f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    now_ms = time.time_ns() // 1_000_000
    for name, scopes in (("publish", ["publish", "device"]), ("admin", ["admin"])):
        made = issue_token(folder / "tokens.json", scopes, now_ms=now_ms, lasts_ms=3_600_000)  # type: ignore[arg-type]
        (folder / f"{name}.token").write_text(made.token + "\n")
        (folder / f"{name}.token").chmod(0o600)
    config = ServingConfig(tokens=folder / "tokens.json", bundles=BundleStoreConfig(unverified=True))
    with live(small_run(folder / "run").folder, folder / "feedback.db", config=config) as server:
        yield Site(folder, server)


def _upload(site: Site, bundle: Path, *options: object, server: str | None = None, token: Path | None = None) -> int:
    argv = ["upload", bundle, "--server", server or site.url, "--token-file", token or site.token, *options]
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in argv])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_bundle_is_served_after_the_command_and_sent_but_once(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "b", FILES)
    assert _upload(site, bundle) == 0
    captured = capsys.readouterr()
    assert captured.out == "bundle 1 is served: 2 files, 5002 bytes in total, 2 files uploaded\n"
    assert "uploaded models/split.fp32.onnx, 5000 bytes" in captured.err
    headers = {"Authorization": f"Bearer {site.token.read_text().strip()}"}
    for path, data in FILES.items():
        assert site.server.send("GET", f"/v1/bundle/files/{path}", headers=headers).body == data
    assert _upload(site, bundle) == 0
    assert capsys.readouterr().out == "bundle 1 is served: 2 files, 5002 bytes in total, 0 files uploaded\n"


def test_what_the_server_refuses_is_told_in_one_line(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = make_bundle(tmp_path / "foreign", 8)  # of another split version
    changed = write_bundle(tmp_path / "changed", {**FILES, "spec.json": b'{"n": 1}'})
    (changed / "spec.json").write_bytes(b'{"n": 2}')
    wrong = tmp_path / "wrong.token"
    wrong.write_text(site.token.read_text().strip()[:-4] + "0000")
    wrong.chmod(0o600)
    (tmp_path / "text").write_text("no token")
    (tmp_path / "text").chmod(0o600)
    (tmp_path / "open").write_text(site.token.read_text())
    (tmp_path / "open").chmod(0o644)
    whole = write_bundle(tmp_path / "b", FILES)
    capsys.readouterr()
    for bundle, server, token, message in (
        (foreign, None, None, "got 409: Expected a split version that is served"),
        (tmp_path, None, None, "Expected a bundle with manifest.json"),
        (changed, None, None, "got 409"),
        (whole, None, wrong, "got 401: Expected a token of this server, got another"),
        (whole, None, tmp_path / "nowhere", "No such file"),
        (whole, None, tmp_path / "text", "Expected a token `prk_<id>_<secret>`"),
        (whole, None, tmp_path / "open", "chmod 600"),
        (whole, "http://127.0.0.1:9", None, "ConnectError"),
        (whole, "http://pages.example", None, "--server: expected an https:// URL"),
        (whole, "ftp://pages.example", None, "Expected a URL like `https://host:port`"),
    ):
        assert _upload(site, bundle, server=server, token=token) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert message in told
        assert told.count("\n") == 1
        assert site.token.read_text().strip().split("_")[2] not in told


@pytest.mark.parametrize(
    ("server", "private"),
    [("https://a.example", True), ("http://localhost:1", True), ("http://[::1]:1", True), ("http://127.0.0.2", True),
     ("http://a.example", False), ("http://10.0.0.1", False), ("http://localhost.example", False)],
)  # fmt: skip
def test_a_token_is_not_sent_where_others_see_it(server: str, private: bool) -> None:
    with BundleUploader(server, "prk_x") as uploader:
        assert uploader.is_private is private


def test_a_server_is_rolled_back_once(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def roll_back(token: Path) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["rollback", "--server", site.url, "--token-file", str(token)])
        return int(ended.value.code or 0)

    for serial in (101, 102):
        assert _upload(site, write_bundle(tmp_path / str(serial), FILES, serial=serial)) == 0
    assert roll_back(site.token) == 2
    assert "got 403" in capsys.readouterr().err
    assert roll_back(site.admin) == 0
    assert capsys.readouterr().out == "bundle 101 is served\n"
    assert roll_back(site.admin) == 2
    assert "got 409: Expected a bundle that was served before" in capsys.readouterr().err
