"""What `forget` deletes, what it says of the rest, and that running servers follow."""

import json
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from pocketrank.cloud.pages.own_ids import OwnIds
from pocketrank.cloud.published.id_texts import PublishedIds
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.cloud.training.registry import FolderRegistry
from pocketrank.device.codec import read_page
from pocketrank.device.contract import FeedbackBatch, FeedbackReceipt, Page, id_code
from pocketrank.sdk_demo.cli import main
from tests.cloud.events import event
from tests.cloud.id_dictionaries import small_run_with_texts
from tests.cloud.serving.live import Live, live, request
from tests.cloud.small_published import small_run


def _run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def _shown(server: Live, user: int) -> set[int]:
    return set(read_page(server.ask("/v1/page", request(user, 60), Page)).item_id.tolist())


@pytest.mark.parametrize("workers", [1, 2])
def test_servers_drop_what_they_know_of_a_forgotten_user_and_of_no_other(tmp_path: Path, workers: int) -> None:
    run = small_run(tmp_path / "run").folder
    with live(run, run / "feedback.db", config=ServingConfig(workers=workers)) as server:
        before = {user: _shown(server, user) for user in (2, 3)}
        watched = {user: sorted(shown)[:5] for user, shown in before.items()}
        batch = FeedbackBatch(events=tuple(event(user, item) for user, items in watched.items() for item in items))
        assert server.ask("/v1/feedback", batch, FeedbackReceipt).accepted == 10
        for _ in range(4 * workers):  # every worker knows
            assert [_shown(server, user) & set(items) for user, items in watched.items()] == [set()] * 2
        assert _run("forget", "2", "--run", str(run), "--json", str(tmp_path / "report.json")) == 0
        for _ in range(4 * workers):
            assert (_shown(server, 2), _shown(server, 3) & set(watched[3])) == (before[2], set())
        later = FeedbackBatch(events=(event(2, watched[2][0]),))
        assert server.ask("/v1/feedback", later, FeedbackReceipt).accepted == 1
        assert _shown(server, 2) == before[2] - {watched[2][0]}
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["user_id"], report["events_deleted"], report["records_unassigned"]) == (2, 5, 0)
    with closing(SqliteFeedbackLog(run / "feedback.db")) as log:
        assert Counter(e.user_id for e in log.replay()) == {3: 5, 2: 1}
    with live(run, run / "feedback.db") as server:
        assert _shown(server, 2) == before[2] - {watched[2][0]}


def test_the_report_names_what_remains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small_run(tmp_path / "run")
    db = tmp_path / "feedback.db"
    with closing(SqliteFeedbackLog(db)) as log:
        log.append([event(1), event(1), event(999)])
    expected = int((run.published.history_item[1] > 0).sum())
    options = ("--run", str(run.folder), "--feedback-db", str(db))
    assert _run("forget", "1", *options) == 0
    out = capsys.readouterr().out
    assert f"user 1: 2 events deleted from {db}\n" in out
    assert f"remain until the next training: the user's rows and {expected} events of the published history in " in out
    assert _run("forget", "999", *options, "--json", "-") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "user_id": 999, "feedback_log": str(db), "events_deleted": 1, "records_deleted": 0, "records_unassigned": 0,
        "published_user": False, "published_events": 0,
    }  # fmt: skip
    assert "remain" not in captured.err


def test_a_user_whose_id_is_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, db = small_run_with_texts(tmp_path / "run"), tmp_path / "feedback.db"
    with closing(SqliteFeedbackLog(db)) as log, closing(OwnIds(PublishedIds.open(run.folder / "published"), log.ids)) as ids:
        codes = ids.remember([("user_id", text) for text in ("user-1", "new", "another")]).values()
        log.append([event(code) for code in codes])
    options = ("--run", str(run.folder), "--feedback-db", str(db), "--json", "-")
    for user, is_published in (("user-1", True), ("new", False)):
        assert _run("forget", user, *options) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["user_id"], report["events_deleted"], report["published_user"]) == (user, 1, is_published)
    with closing(SqliteFeedbackLog(db)) as log, closing(OwnIds(PublishedIds.open(run.folder / "published"), log.ids)) as ids:
        assert [one.user_id for one in log.replay()] == [id_code("another")]
        assert [text for _, text, _ in ids.grown()] == ["another"]
    assert _run("forget", "", *options) == 2
    assert "error: USER: expected an id of 1 to 256 characters, got `0 characters`" in capsys.readouterr().err


def test_a_user_of_the_active_run_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("monday", "tuesday"):
        small_run(tmp_path / "runs" / name, split_version=name)
    FolderRegistry(tmp_path / "runs").activate("tuesday")
    with closing(SqliteFeedbackLog(tmp_path / "runs" / "feedback.db")) as log:
        log.append([event(1), event(1), event(2)])
    assert _run("forget", "1", "--runs", str(tmp_path / "runs")) == 0
    out = capsys.readouterr().out
    assert f"user 1: 2 events deleted from {tmp_path / 'runs' / 'feedback.db'}\n" in out
    assert f"published history in {tmp_path / 'runs' / 'tuesday' / 'published'}" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["forget", "1", "--run", "RUN"], "error: --feedback-db: expected the file of a feedback log, got `"),
        (["forget", str(1 << 63), "--run", "RUN"], "error: USER: expected an id of 64 bits"),
        (["forget", "user-1", "--run", "RUN"], "error: USER: expected a whole number, as all ids of the run's users are"),
        (["forget", "1", "--run", "RUN", "--feedback-db", "RUN/run.json"], "error: Expected a "),
        (["forget", "1", "--run", "nowhere"], "error: Expected a finished run"),
        (["forget", "1"], "error: --run: expected either --run RUN or --runs FOLDER, got `neither`"),
        (
            ["forget", "1", "--run", "RUN", "--runs", "RUN"],
            "error: --run: expected either --run RUN or --runs FOLDER, got `both`",
        ),
        (["forget", "1", "--runs", "RUN/.."], "error: --runs: expected runs of which one is active"),
    ],
)
def test_wrong_input_makes_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    run = small_run(tmp_path / "run").folder
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert _run(*(word.replace("RUN", str(run)) for word in argv)) == 2
    error = capsys.readouterr().err
    assert (error.startswith(message), error.count("\n")) == (True, 1), error
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
