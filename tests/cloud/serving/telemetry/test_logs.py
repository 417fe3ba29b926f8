import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.cloud.serving.telemetry.logs import (
    AccessLog,
    LoggingConfig,
    RequestInfo,
    configure_logs,
    current_request,
    request_id_of,
)


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_one_json_object_with_its_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(LoggingConfig(format="json"))
    before = current_request.set(RequestInfo("abc-1"))
    AccessLog()("POST", "/v1/page", 503, 0.00125, "LogBusyError")
    logging.getLogger("elsewhere").info("two\nlines %s", "ü\udcff")
    logging.getLogger("elsewhere").debug("below the level")
    current_request.reset(before)
    logging.getLogger("elsewhere").warning("of no request %d", "wrong")
    first, second, third = logged(capsys)
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "warning", "logger": "pocketrank.access", "message": "answered", "request_id": "abc-1", "method": "POST",
        "route": "/v1/page", "status": 503, "ms": 1.25, "error": "LogBusyError",
    }  # fmt: skip
    assert (second["message"], second["request_id"]) == ("two\nlines ü\\udcff", "abc-1")
    assert third["message"] == "of no request %d"
    assert "request_id" not in third


def test_an_exception_with_its_traceback_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(LoggingConfig(format="json"))
    try:
        raise KeyError("password=hunter2")
    except KeyError:
        logging.getLogger("uvicorn.error").exception("it broke")
    (line,) = logged(capsys)
    assert line["error"] == "KeyError"
    assert line["traceback"].startswith("Traceback (most recent call last):\n")
    assert "hunter2" not in line["traceback"]


def test_no_message_can_forge_a_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    AccessLog()("GET", "other", 404, 0.001)
    logging.getLogger("x").warning("a\n2026-01-01T00:00:00.000Z INFO x fine\x1b[2J")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(" INFO pocketrank.access answered method=GET route=other status=404 ms=1.0")
    assert second.endswith(" WARNING x a\\n2026-01-01T00:00:00.000Z INFO x fine\\x1b[2J")


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer s3cr3t.x-y",
        "got {'authorization': 'bearer s3cr3t'}",
        "basic s3cr3t==",
        "token=s3cr3t",
        '"password": "s3cr3t"',
        "valkey://user:s3cr3t@store:6379/0 is gone",
        "api_key = s3cr3t",
    ],
)
def test_what_looks_like_a_secret_is_not_logged(capsys: pytest.CaptureFixture[str], text: str) -> None:
    configure_logs(LoggingConfig(format="json"))
    logging.getLogger("x").error("before %s after", text)
    (line,) = logged(capsys)
    assert "s3cr3t" not in json.dumps(line)
    assert line["message"].startswith("before ")
    assert line["message"].endswith(" after")


def test_errors_are_logged_and_successes_are_sampled(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(LoggingConfig(format="json"))
    silent = AccessLog()
    for status in (200, 206, 304, 400, 429, 500):
        silent("GET", "/healthz", status, 0.0)
    assert [line["status"] for line in logged(capsys)] == [400, 429, 500]
    sampled = AccessLog(LoggingConfig(success_share=0.5, lines_max=1000))
    for _ in range(400):
        sampled("GET", "/healthz", 200, 0.0)
    assert 120 < len(logged(capsys)) < 280


def test_an_overload_does_not_overload_the_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("pocketrank.cloud.serving.telemetry.logs.monotonic", lambda: now)
    configure_logs(LoggingConfig(format="json"))
    access = AccessLog(LoggingConfig(lines_max=3))
    for _ in range(10):
        access("POST", "/v1/page", 429, 0.0)
    now = 1.5
    access("POST", "/v1/page", 429, 0.0)
    lines = logged(capsys)
    assert len(lines) == 4
    assert lines[-1]["suppressed"] == 7


def test_a_valid_request_id_is_kept_and_any_other_replaced() -> None:
    assert request_id_of([(b"host", b"x"), (b"x-request-id", b"abc-123")]) == "abc-123"
    bad = [b"", b"x" * 65, b"two words", b"new\nline", "ü".encode(), b"a\x00"]
    made = [request_id_of([(b"x-request-id", value)]) for value in bad] + [request_id_of([])]
    assert len(set(made)) == len(made)
    assert not {value.decode("latin-1") for value in bad} & set(made)


@given(st.binary(max_size=80))
def test_a_request_id_is_always_short_and_printable(value: bytes) -> None:
    made = request_id_of([(b"x-request-id", value)])
    assert 1 <= len(made) <= 64
    assert made.isascii()
    assert made.isprintable()
    assert " " not in made


def test_a_workers_lines_hold_its_place() -> None:
    code = """
import logging, os
os.environ["POCKETRANK_WORKER"] = "3"
from pocketrank.cloud.serving.telemetry.logs import LoggingConfig, configure_logs
configure_logs(LoggingConfig(format="json"))
logging.getLogger("x").info("here")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(result.stderr)["worker"] == 3


@pytest.mark.parametrize("wrong", [{"format": "xml"}, {"level": "LOUD"}, {"success_share": 1.5}, {"lines_max": 0}])
def test_an_invalid_config_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        LoggingConfig(**wrong)


def test_a_client_library_writes_no_line_for_each_request(capsys: pytest.CaptureFixture[str]) -> None:
    httpx = logging.getLogger("httpx")
    before = httpx.level
    configure_logs(LoggingConfig(format="json"))
    httpx.info("HTTP Request: POST")
    httpx.warning("a fault")
    httpx.setLevel(before)
    assert [line["message"] for line in logged(capsys)] == ["a fault"]
