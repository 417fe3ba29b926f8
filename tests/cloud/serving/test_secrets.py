"""No secret in what a server logs or answers, however it is used and whatever breaks."""

import time
from pathlib import Path

from cloud.serving.token_file import issue_token, revoke_token
from tests.cloud.serving.guarded import guarded
from tests.cloud.serving.running import Answer


def test_no_secret_is_in_a_log_or_an_answer(tmp_path: Path) -> None:
    tokens, log = tmp_path / "tokens.json", tmp_path / "log"
    now_ms = time.time_ns() // 1_000_000
    made = {
        name: issue_token(tokens, scopes, now_ms=now_ms, lasts_ms=lasts_ms).token
        for name, scopes, lasts_ms in (
            ("all", ("device", "publish", "admin"), 3_600_000),
            ("device", ("device",), 3_600_000),
            ("revoked", ("device", "publish", "admin"), 3_600_000),
            ("expired", ("device", "publish", "admin"), -1),
        )
    }
    revoke_token(tokens, made["revoked"].split("_")[1], now_ms=now_ms)
    wrong = made["all"][:-3] + "abc"
    answers: list[Answer] = []
    with guarded(
        tmp_path / "store", tokens=str(tokens), stderr=log, limits={"publish": {"per_s": 0.001, "burst": 3}}
    ) as server:

        def use_all() -> None:
            for token in (*made.values(), wrong, made["all"] + "0", made["all"].upper()):
                for scheme in ("Bearer ", "Basic ", ""):
                    headers = {"Authorization": scheme + token}
                    for method, path in (
                        ("GET", "/v1/bundle/manifest.json"), ("GET", "/metrics"), ("PUT", "/v1/bundle"), ("GET", "/nowhere"),
                        ("PUT", "/v1/bundle/blobs/" + "0" * 64), ("POST", "/metrics"),
                    ):  # fmt: skip
                        answers.append(server.send(method, path, b"{", {**headers, "Content-Type": "application/json"}))

        use_all()
        tokens.write_bytes(tokens.read_bytes()[:-20])
        use_all()
        tokens.unlink()
        use_all()
        server.process.terminate()
        server.process.wait(30)
    logged = log.read_text()
    # It did log what one would look at: requests, a traceback, what is wrong with the file.
    for told in ("PUT /v1/bundle", "RuntimeError: a server that breaks", "the token file cannot be read anew"):
        assert told in logged
    assert {answer.status for answer in answers} == {400, 401, 403, 404, 405, 415, 429, 500}
    answered = "".join(f"{answer.headers}{answer.body!r}" for answer in answers)
    for token in (*made.values(), wrong):
        secret = token.split("_")[2]
        for part in (secret, secret.upper(), secret[:16], secret[-16:]):
            assert part not in logged
            assert part not in answered
