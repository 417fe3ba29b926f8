"""No secret in what a server logs or answers, however it is used and whatever breaks."""

import time
from pathlib import Path

from pocketrank.cloud.serving.access.limits import LimitsConfig, RateLimit
from pocketrank.cloud.serving.access.tokens import issue_token, revoke_token
from pocketrank.cloud.serving.routes.health import HealthConfig
from pocketrank.cloud.serving.telemetry.logs import LoggingConfig
from pocketrank.device.codec import to_json
from tests.cloud.serving.live import Answer, live, piped, request, until
from tests.cloud.small_published import small_run

_BREAKS = """
from pocketrank.cloud.pipeline.stage import Stage

class Breaks(Stage):
    def __call__(self, query, candidates):
        raise RuntimeError("a stage that breaks")
"""


def test_no_secret_is_in_a_log_or_an_answer(tmp_path: Path) -> None:
    tokens, log, now_ms = tmp_path / "tokens.json", tmp_path / "log", time.time_ns() // 1_000_000
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
    (tmp_path / "breaks.py").write_text(_BREAKS)
    config = piped(
        tmp_path,
        '[[stage]]\nuse = "breaks.Breaks"\n',
        tokens=tokens,
        health=HealthConfig(cache_s=0.0),
        limits=LimitsConfig(publish=RateLimit(0.001, 3)),
        logs=LoggingConfig(level="DEBUG", success_share=1.0, lines_max=100_000),
    )
    with live(small_run(tmp_path / "run").folder, tmp_path / "feedback.db", stderr=log, config=config) as server:

        def use(token: str) -> None:
            for scheme in ("Bearer ", "Basic ", ""):
                headers = {"Authorization": scheme + token, "Content-Type": "application/json"}
                for method, path, body in (
                    ("POST", "/v1/page", to_json(request())), ("POST", "/v1/feedback", b"{"), ("PUT", "/v1/bundle", b"{"),
                    ("GET", "/v1/bundle/manifest.json", b""), ("GET", "/metrics", b""), ("POST", "/metrics", b"{"),
                    ("PUT", "/v1/bundle/blobs/" + "0" * 64, b"{"), ("GET", "/nowhere", b""),
                ):  # fmt: skip
                    answers.append(server.send(method, path, body, headers))

        def use_all() -> None:
            for token in (*made.values(), wrong, made["all"] + "0", made["all"].upper()):
                use(token)

        def complains(of: str) -> bool:
            use(wrong)
            return of in log.read_text()

        use_all()
        tokens.write_bytes(tokens.read_bytes()[:-20])
        until(lambda: complains("Input data was truncated"), "a word about the broken file")
        use_all()
        tokens.unlink()
        until(lambda: complains("No such file"), "a word about the missing file")
        use_all()
        ready = server.send("GET", "/readyz")
        answers.append(ready)
        server.process.terminate()
        server.process.wait(30)
    checks = dict.fromkeys(("feedback_log", "feedback_records", "event_log", "store", "stages"), "ok") | {"tokens": "failed"}
    assert (ready.status, ready.json()) == (200, {"status": "degraded", "checks": checks})
    logged = log.read_text()
    # It did log what one would look at: requests, a traceback, what is wrong with the file.
    for text in ("route=/v1/page status=200", "route=/v1/bundle status=401", "RuntimeError: a stage that breaks",
                 "the token file cannot be read; its"):  # fmt: skip
        assert text in logged
    assert {answer.status for answer in answers} == {200, 400, 401, 403, 404, 405, 415, 429}
    answered = "".join(f"{answer.headers}{answer.body!r}" for answer in answers)
    for token in (*made.values(), wrong):
        secret = token.split("_")[2]
        for part in (secret, secret.upper(), secret[:16], secret[-16:]):
            assert part not in logged
            assert part not in answered
