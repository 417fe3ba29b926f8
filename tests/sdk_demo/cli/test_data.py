"""`pocketrank data`: from a folder of tables to a log."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from pocketrank.cloud.data.log import open_log
from pocketrank.sdk_demo.cli import main

NOON = 1_700_049_600_000


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(one) for one in argv])
    return int(left.value.code or 0)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A shop's exports: events in two files, articles, customers with zeros before their numbers, and a note."""
    folder = tmp_path / "My Shop"
    folder.mkdir()
    header = "customerNo,articleId,eventTime,is_purchase,dwell_ms,slot"
    for part in (1, 2):
        rows = [f"00{i},a{i % 3},{NOON + part * 1000 + i},{i % 2},{100 * i},{i}" for i in range(6)]
        (folder / f"events-2023-11-{part}.csv").write_text("\n".join([header, *rows]) + "\n")
    kinds = "\n".join(f"a{i},shop{i},{'shoes|men' if i else 'hats'},2023-01-0{i + 1}" for i in range(3))
    (folder / "articles.csv").write_text(f"articleId,seller,category,published\n{kinds}\n")
    people = "\n".join(f"00{i},{'DE' if i else 'US'},{i * 10},{str(i > 2).lower()}" for i in range(6))
    (folder / "customers.csv").write_text(f"customerNo,country,orders,member\n{people}\n")
    (folder / "notes.md").write_text("# Notes")
    return folder


def test_a_draft_names_what_it_found(tables: Path) -> None:
    assert run("data", "init", tables) == 0
    text = (tables / "data.toml").read_text()
    found = tomllib.loads(text)
    assert (found["name"], found["time_unit"], found["tasks"]) == ("my-shop", "ms", {"purchase": 1.0})
    assert found["tables"] == {
        "articles": "articles.csv",
        "customers": "customers.csv",
        "events": "events*.csv",
    }
    impressions = re.sub(r"\s+", " ", found["impressions"]["sql"])
    assert "SELECT customerNo AS user_id, articleId AS item_id, eventTime AS time, dwell_ms AS watch_ms" in impressions
    assert "slot AS position" in impressions
    items = re.sub(r"\s+", " ", found["items"]["sql"])
    assert "seller AS author_id, string_split(category, '|')[1] AS category" in items
    assert "published AS upload_time, string_split(category, '|') AS categories FROM articles" in items
    assert "ln(1 + orders) AS orders" in found["users"]["sql"]
    assert text.count("#") > 8


def test_a_draft_is_checked_imported_and_never_overwritten(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, log = tmp_path / "mine.toml", tmp_path / "log"
    assert run("data", "init", tables, "--out", file) == 0
    assert "next: read it, then pocketrank data check" in capsys.readouterr().out
    draft = file.read_bytes()
    assert run("data", "init", tables, "--out", file) == 2
    assert "--out: expected a file that is not there yet" in capsys.readouterr().err
    assert file.read_bytes() == draft
    assert run("data", "check", file, "--json", tmp_path / "report.json", "--page", tmp_path / "report.html") == 0
    said, report = capsys.readouterr().out, json.loads((tmp_path / "report.json").read_bytes())
    assert (report["rows"], report["users"], report["items"]) == (12, 6, 3)
    assert "my-shop: 12 rows, 0 duplicates, 6 users, 3 items" in said
    assert "impressions.watch_ms" in said
    assert "no suspicions" in said
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2 + len(report["coverage"])
    assert "<script" not in page
    assert "purchase" in page
    assert run("data", "import", file, "--out", log) == 0
    assert f"12 impressions written to {log}" in re.sub(r"\n", "", capsys.readouterr().out)
    opened = open_log(log)
    assert [row["text"] for row in opened.ids.to_pylist() if row["kind"] == "user_id"] == [f"00{i}" for i in range(6)]
    assert run("data", "import", file, "--out", tmp_path / "second", "--codes-from", log) == 0
    assert open_log(tmp_path / "second").numbering == opened.numbering != ""
    assert run("data", "import", file, "--out", tmp_path / "third", "--codes-from", tables) == 2
    assert "expected a log, or a run with published/categories.json" in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert not (tmp_path / "third").exists()


def test_a_check_prints_its_json(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "init", tables) == 0
    capsys.readouterr()
    assert run("data", "check", tables / "data.toml", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["labels"]["purchase"] == {"rate": 0.5, "known": 1.0}


def test_suspicions_are_printed_and_shown(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = tables / "events-2023-11-1.csv"
    events.write_text(events.read_text().replace("000,a0", "000,A0"))
    assert run("data", "init", tables) == 0
    assert run("data", "check", tables / "data.toml", "--page", tmp_path / "report.html") == 0
    assert "suspicion: 2 ids of `item_id` differ by case or blanks alone" in capsys.readouterr().out
    assert "ids of <code>item_id</code> differ" in (tmp_path / "report.html").read_text()


def test_a_wrong_value_ends_the_import_with_its_place(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = tables / "events-2023-11-2.csv"
    events.write_text(events.read_text().replace(",1,100,", ",2,100,"))
    assert run("data", "init", tables) == 0
    text = (tables / "data.toml").read_text()
    (tables / "data.toml").write_text(
        text.replace("[labels]", '[labels]\npurchase = "is_purchase"').replace("[tasks]", "[tasks]\npurchase = 1")
    )
    capsys.readouterr()
    for command in (["check"], ["import", "--out", tmp_path / "log"]):
        assert run("data", command[0], tables / "data.toml", *command[1:]) == 2
        error = capsys.readouterr().err
        assert "events-2023-11-2.csv, row 2, column `is_purchase`: expected 0 or 1, got 2" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "log").exists()


def test_a_folder_without_tables_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "init", tmp_path) == 2
    assert "expected a folder with files of CSV, Parquet or Arrow, got none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_draft_of_tables_it_does_not_understand_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    assert run("data", "init", tmp_path) == 0
    text = (tmp_path / "data.toml").read_text()
    assert "NULL AS user_id,  -- which column is it?" in text
    assert 'like = "NULL"  # which column, or condition, is it?' in text
    assert run("data", "check", tmp_path / "data.toml") == 2
    assert "column `user_id`: $.impressions.sql: expected a column with values, got NULL alone" in capsys.readouterr().err
