import json
from contextlib import closing
from pathlib import Path

import pytest

from pocketrank.cloud.data.log import open_log
from pocketrank.cloud.streams.event_log import NewRecord
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.device.codec import to_msgpack
from pocketrank.sdk_demo.cli import main
from tests.cloud.events import event
from tests.cloud.small_published import small_run
from tests.cloud.streams.batch_join import served


def command(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_server_s_topics_become_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "run", tmp_path / "collected"
    run = small_run(folder)
    item = int(run.published.item_id[3])
    feedback = SqliteFeedbackLog(folder / "feedback.db")
    assert feedback.events is not None
    with closing(feedback), closing(SqliteEventLog(feedback.events, feedback)) as log:
        log.append("pages", [NewRecord(1, to_msgpack(served("p", 1, "s", [item, 5], 0)))])
        feedback.append([event(item_id=item, page_id="p"), event(item_id=5, page_id="p", position=1)])
    report = tmp_path / "report.json"
    assert command("log", "export", str(folder), "--out", str(out), "--json", str(report)) == 0
    written = json.loads(report.read_text())
    assert (written["impressions"], written["unknown_items"], written["digest"]) == (1, 1, open_log(out).digest())
    assert "1 impressions of 1 pages written" in capsys.readouterr().out


def test_a_run_without_feedback_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_run(tmp_path / "run")
    assert command("log", "export", str(tmp_path / "run"), "--out", str(tmp_path / "log")) == 2
    assert "the file of a feedback log" in capsys.readouterr().err
