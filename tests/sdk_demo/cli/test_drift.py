"""`pocketrank data drift`: a log and a real server beside a small run."""

import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import time_ns
from typing import Any, ClassVar

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from pocketrank.cloud.data.log import open_log, save_log
from pocketrank.cloud.data.sample_stream import WindowConfig, build_samples
from pocketrank.cloud.data.samples import SampleConfig
from pocketrank.cloud.data.schema import IDS, IMPRESSIONS, ITEMS, USERS, ImpressionLog
from pocketrank.cloud.serving.access.tokens import issue_token
from pocketrank.cloud.serving.telemetry.features import DriftConfig
from pocketrank.cloud.training.profile import ProfileSample, log_profile
from pocketrank.cloud.training.run import Run
from pocketrank.device.codec import to_msgpack
from pocketrank.sdk_demo.cli import main
from tests.cloud.data.logs import columns
from tests.cloud.serving.live import MSGPACK, live, piped, until
from tests.cloud.serving.profiles import REQUESTS, SeenInputs, made_pages
from tests.cloud.small_published import TASKS, SmallRun, small_run
from tests.sdk_demo.report.test_files import _Links

DAYS, DAY_MS, START = 200, 86_400_000, date(2024, 1, 1)
START_MS = round(datetime(2024, 1, 1, tzinfo=UTC).timestamp() * 1000)
ITEM_IDS = 1000 + 3 * np.arange(60)


def drift(*argv: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["data", "drift", *map(str, argv)])
    return int(left.value.code or 0)


def a_log(*, seed: int = 0, duration: float = 1.0, brands: tuple[str, ...] = ("acme", "bolt", "cord")) -> ImpressionLog:
    """Each of the eight users sees three items at noon of each day. The codes of brands are in the order of their texts."""
    rng = np.random.default_rng(seed)
    day, user = (axis.ravel() for axis in np.mgrid[:DAYS, 1:9])
    rows = 3 * len(day)
    brand = sorted(brands)
    return ImpressionLog(
        name="noon",
        simulated=False,
        time_zone="UTC",
        tasks=dict.fromkeys(TASKS, 1.0),
        impressions=columns(
            IMPRESSIONS,
            rows,
            user_id=np.repeat(user, 3),
            item_id=rng.choice(ITEM_IDS, rows),
            impression_ms=np.sort(START_MS + DAY_MS // 2 + np.repeat(day, 3) * DAY_MS + np.tile(np.arange(24), DAYS) * 1000),
            watch_ms=rng.integers(0, 9000, rows),
            long_view=rng.random(rows) < 0.4,
            like=rng.random(rows) < 0.1,
        ),
        items=columns(
            ITEMS,
            60,
            item_id=ITEM_IDS,
            duration_ms=(np.linspace(5000, 60_000, 60) * duration).astype(np.int64),
            author_id=7000 + np.arange(60) // 6,
            categories=[[1 + brand.index(brands[item % len(brands)])] for item in range(60)],
        ),
        users=columns(USERS, 8, user_id=np.arange(1, 9)),
        ids=pa.Table.from_pylist([{"kind": "items.brand", "code": 1 + n, "text": text} for n, text in enumerate(brand)], IDS),
        item_categories=("brand",),
    )


def saved(log: ImpressionLog, folder: Path) -> Path:
    return save_log(log, folder).folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A run with the profile of that log."""
    run, log = small_run(tmp_path_factory.mktemp("drift") / "run"), a_log()
    samples = build_samples(log, SampleConfig(tasks=TASKS, history_max=run.record.history_max))
    sample = ProfileSample(samples)
    sample.add(samples, np.arange(len(samples.row_event)))
    sample.profile(log.ids).save(run.folder / "published")
    return run


def test_the_same_log_has_not_drifted(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, report = saved(a_log(), tmp_path / "log"), tmp_path / "new" / "report.json"
    assert drift(run.folder, log, "--json", report, "--fail-above", 0) == 0
    found = json.loads(report.read_bytes())
    assert (found["run"], found["against"]) == (str(run.folder), "log noon")
    assert found["pages"] == {"training": 800, "serving": 800}  # lists of two days
    scores = {"pxtr_long_view", "pxtr_like"}
    assert {name: one["psi"] for name, one in found["features"].items() if name not in scores} == {
        name: 0 for name in found["features"] if name not in scores
    }
    assert {found["features"][name]["verdict"] for name in scores} == {"not counted"}
    said = capsys.readouterr().out
    assert "800 pages of training, 800 since" in said
    assert re.search(r"duration_ms +0.000 +stable +100.0% +4,800 +100.0% +4,800", said)


def test_what_has_changed_is_first(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, page = saved(a_log(seed=1, duration=1.5), tmp_path / "log"), tmp_path / "drift.html"
    assert drift(run.folder, log, "--json", "-", "--page", page, "--fail-above", 0.25) == 2
    said = capsys.readouterr()
    found = json.loads(said.out)
    first, *others = found["features"]
    assert first == "duration_ms"
    assert found["features"][first]["verdict"] == "large"
    assert {found["features"][name]["verdict"] for name in others} == {"stable", "not counted"}
    assert any(0 < found["features"][name]["psi"] < 0.05 for name in others if found["features"][name]["psi"] is not None)
    psi = found["features"][first]["psi"]
    assert said.err.splitlines()[-1] == f"error: Expected a PSI of at most 0.25, got {psi:.3f} - at `duration_ms`"
    seen = _Links()
    text = page.read_text()
    seen.feed(text)
    assert (seen.loads, seen.open) == ([], [])
    assert f"duration_ms: large, PSI {psi:.3f}" in text
    assert text.count("<svg") == len(found["features"]) - 2


def test_categories_are_compared_by_their_texts(run: SmallRun, tmp_path: Path) -> None:
    """A new first text in the order of texts gives all others new codes."""
    report = tmp_path / "report.json"
    for brands, counts in ((("acme", "bolt", "cord"), [0, 0]), (("bolt", "acme", "aaaa"), [0, 1])):
        log = saved(a_log(brands=brands), tmp_path / "log")
        assert drift(run.folder, log, "--json", report) == 0
        brand = json.loads(report.read_bytes())["features"]["brand"]
        assert brand["bins"] == ["unknown", "acme", "bolt", "cord", "others"]
        shares = brand["serving"]["shares"]
        assert [round(3 * shares[0]), round(3 * shares[-1])] == counts
        assert shares[2] == pytest.approx(1 / 3, abs=0.02)
        author = json.loads(report.read_bytes())["features"]["author"]
        assert author["bins"] == ["unknown", *(str(7000 + n) for n in range(10)), "others"]
        assert author["psi"] == 0


def test_only_days_from_a_day_on_are_compared(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, report, day = saved(a_log(), tmp_path / "log"), tmp_path / "report.json", START + timedelta(100)
    assert drift(run.folder, log, "--from", day, "--json", report) == 0
    found = json.loads(report.read_bytes())
    assert found["against"] == f"log noon from {day} on"
    assert found["features"]["duration_ms"]["serving"]["rows"] == 100 * 24
    assert found["features"]["history.length"]["serving"]["shares"][-2] == 1, "the days before are history"
    capsys.readouterr()
    assert drift(run.folder, log, "--from", "2030-01-01") == 2
    assert "noon: expected impressions from 2030-01-01 on, got none" in capsys.readouterr().err


def test_scores_are_compared_where_a_run_learned_from_those_of_its_log(tmp_path: Path) -> None:
    run, report = small_run(tmp_path / "run"), tmp_path / "report.json"
    log = a_log()
    scores = pa.array(np.linspace(0, 1, log.rows), pa.float32())
    log = replace(log, impressions=log.impressions.append_column("pxtr_like", scores))
    sample = ProfileSample(samples := build_samples(log, SampleConfig(tasks=TASKS)))
    sample.add(samples, np.arange(len(samples.row_event)))
    sample.profile(log.ids).save(run.folder / "published")
    for ranker, verdict in ((True, "not counted"), (False, "stable")):
        run.published.save(run.folder / "published", msgspec.structs.replace(run.record, ranker=ranker))
        assert drift(run.folder, saved(log, tmp_path / "log"), "--json", report) == 0
        features = json.loads(report.read_bytes())["features"]
        assert features["pxtr_like"]["verdict"] == verdict
        assert features["pxtr_long_view"]["verdict"] == "not counted"


def test_a_log_is_counted_in_windows(run: SmallRun, tmp_path: Path) -> None:
    log, opened = open_log(saved(a_log(seed=2), tmp_path / "log")), Run.open(run.folder)
    windows = WindowConfig(rows=1200, events=2000)
    assert log_profile(opened, log, windows=windows) == log_profile(opened, log)


def test_a_run_without_a_profile_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small_run(tmp_path / "run")
    assert drift(run.folder, saved(a_log(), tmp_path / "log")) == 2
    assert "Expected a run with a profile of its inputs, got one that was published without - at " in capsys.readouterr().err


def test_a_server_reports_what_it_serves_by_its_metrics_and_to_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers serve items whose durations are no longer those of training."""
    run = small_run(tmp_path / "run")
    profile = SeenInputs(made_pages(run.folder)).profile()
    msgspec.structs.replace(profile, pages=10_000).save(run.folder / "published")
    longer = run.published.item_float * np.array([5, 1], np.float32)
    replace(run.published, item_float=longer).save(run.folder / "published", run.record)
    tokens, mine = tmp_path / "tokens.json", tmp_path / "mine.token"
    token = issue_token(tokens, ("admin", "device"), now_ms=time_ns() // 1_000_000, lasts_ms=3_600_000).token
    mine.write_text(token)
    mine.chmod(0o600)
    headers = {**MSGPACK, "Authorization": f"Bearer {token}"}
    limits = "[limits]\npage_ms = 60_000\nqueue_ms = 60_000\n"
    config = piped(tmp_path / "pipe", limits, workers=2, tokens=tokens, drift=DriftConfig(stride=1))
    with live(run.folder, tmp_path / "db", config=config) as server:
        for one in REQUESTS * 4:
            assert server.send("POST", "/v1/page", to_msgpack(one), headers).status == 200
        until(lambda: server.metric('pocketrank_feature_pages{where="serving"}', headers) == 240, "the pages of both workers")
        metric = {
            name: server.metric(f'pocketrank_feature_drift{{feature="{name}"}}', headers) for name in ("age", "duration_ms")
        }
        assert metric["duration_ms"] > 1
        assert metric["age"] == 0
        assert server.metric('pocketrank_feature_coverage{feature="user.known",where="serving"}', headers) == 0.8
        at = f"http://127.0.0.1:{server.port}"
        assert drift("--server", at, "--token-file", mine, "--json", tmp_path / "report.json", "--fail-above", 1) == 2
        said = capsys.readouterr()
        assert "10,000 pages of training, 240 since" in said.out
        assert said.err.endswith("at `duration_ms`\n")
        report: dict[str, Any] = json.loads((tmp_path / "report.json").read_bytes())
        assert report["against"] == "pages of the last 60 minutes"
        assert next(iter(report["features"])) == "duration_ms"
        psi = {name: one["psi"] for name, one in report["features"].items()}
        assert psi.pop("duration_ms") == pytest.approx(metric["duration_ms"])
        assert psi.pop("request.hour") is None
        assert set(psi.values()) == {0}
        assert drift("--server", at) == 2
        assert "--server: expected the counts of a server, got `401 " in capsys.readouterr().err


class _Answers(BaseHTTPRequestHandler):
    bodies: ClassVar[dict[str, tuple[int, bytes]]] = {
        "/text/drift": (200, b"hello"),
        "/list/drift": (200, b"[]"),
        "/counts/drift": (
            200,
            b'{"run": "r", "window_s": 1, "training": {"pages": 1, "features": [{"name": "x", "of": "page"}]},'
            b' "serving": {"pages": 1, "features": []}}',
        ),
        "/moved/drift": (302, b""),
        "/error/drift": (500, b'{"error": "broken"}'),
    }

    def do_GET(self) -> None:
        status, body = self.bodies[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_other_answers_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        for path, message in (
            ("text", "--server: expected the counts of a server, got `JSON is malformed"),
            ("list", "--server: expected the counts of a server, got `Expected `object`, got `array`"),
            ("counts", "--server: expected the counts of a server, got `Expected ascending edges and 2 counts"),
            ("moved", f"--server: expected the counts of a server, got `302  - at {at}/moved/drift`"),
            ("error", "--server: expected the counts of a server, got `500 broken - at "),
        ):
            assert drift("--server", f"{at}/{path}") == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: {message}")
            assert error.count("\n") == 1
        server.shutdown()
    assert drift("--server", at) == 2
    assert "--server: expected a server that answers, got `ConnectError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "drift: expected either RUN and LOG or --server URL, got `neither`"),
        (["run"], "drift: expected either RUN and LOG or --server URL, got `RUN`"),
        (["run", "world", "--server", "http://a"], "drift: expected either RUN and LOG or --server URL, got `RUN and LOG and"),
        (["run", "--server", "http://a"], "drift: expected either RUN and LOG or --server URL, got `RUN and --server`"),
        (["run", "world", "--from", "May"], "--from: expected a day as YYYY-MM-DD, got `May`"),
        (["run", "world"], "Expected a finished run with run.json, got none"),
        (["--server", "pages.example"], "--server: expected a URL like `https://host:port`, got `pages.example`"),
        (["--server", "http://[::1"], "--server: expected a URL like `https://host:port`"),
        (
            ["--server", "http://pages.example", "--token-file", "t"],
            "--server: expected an https:// URL, or `--allow-http`",
        ),
        (["--server", "https://pages.example", "--token-file", "t"], "Expected a token, got: No such file"),
    ],
)
def test_wrong_input_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert drift(*argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
