import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from pocketrank.cloud.data.log import StoredLog, open_log
from pocketrank.cloud.data.schema import DataError, ImpressionLog
from pocketrank.cloud.training.registry import FolderRegistry
from pocketrank.sdk_demo.cli.errors import OptionError
from pocketrank.sdk_demo.cli.options import DataSource
from pocketrank.sdk_demo.cli.source import load_log
from pocketrank.sdk_demo.world import DEFAULT_WORLD
from tests.cloud.data.folders import KUAIRAND, impression, write_folder
from tests.cloud.small_published import small_run


def _console() -> Console:
    return Console(file=io.StringIO(), width=100, color_system=None)


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _small_world(folder: Path) -> Path:
    """The default world with few users, items and days."""
    text = DEFAULT_WORLD.read_text()
    for name, value in {"items": "300", "count": "30", "days": "2.0"}.items():
        text, changed = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, count=1, flags=re.MULTILINE)
        assert changed, f"the default world has no `{name}`"
    (folder / "world.toml").write_text(text)
    return folder / "world.toml"


def test_the_world_is_simulated_with_progress(tmp_path: Path) -> None:
    console = _console()
    log = load_log(console, DataSource("world"), world=_small_world(tmp_path), seed=1)
    assert log.simulated
    assert log.rows > 0
    assert "simulating the log" in _text(console)
    assert "100 %" in _text(console)


def test_the_seed_decides_the_simulated_log(tmp_path: Path) -> None:
    world = _small_world(tmp_path)
    digests = [load_log(_console(), DataSource("world"), world=world, seed=seed).digest() for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_the_tables_of_a_data_file_are_imported_once(tmp_path: Path) -> None:
    console, tables = _console(), write_folder(tmp_path / "tables")
    source, keep = DataSource("file", KUAIRAND), tmp_path / "run" / "log"
    log = load_log(console, source, world=None, seed=0, tables=tables, keep=keep)
    assert isinstance(log, StoredLog)
    assert not log.simulated
    assert log.load().impressions["like"].to_pylist() == [False, False, True]
    assert "importing the tables" in _text(console)
    assert "100 %" in _text(console)
    written = (keep / "log.json").stat().st_mtime_ns
    again = load_log(console, source, world=None, seed=0, tables=tables, keep=keep)
    assert (again.digest(), (keep / "log.json").stat().st_mtime_ns) == (log.digest(), written)
    opened = load_log(console, DataSource("log", keep), world=None, seed=0)
    assert opened.digest() == log.digest()


def test_the_log_of_a_started_run_is_not_replaced(tmp_path: Path) -> None:
    source, keep = DataSource("file", KUAIRAND), tmp_path / "run" / "log"
    first, other = write_folder(tmp_path / "first"), write_folder(tmp_path / "other", log=[impression()])
    log = load_log(_console(), source, world=None, seed=0, tables=first, keep=keep)
    assert load_log(_console(), source, world=None, seed=0, tables=other, keep=keep).rows == 1
    (tmp_path / "run" / "started.json").touch()
    with pytest.raises(DataError, match="that was imported here, got one of other files; choose another folder"):
        load_log(_console(), source, world=None, seed=0, tables=first, keep=keep)
    assert open_log(keep).rows == 1 < log.rows


def test_a_new_run_continues_the_codes_of_the_active_one_beside_it(tmp_path: Path) -> None:
    def log_of(run: str, *tags: str) -> dict[str, int]:
        (tmp_path / "goods.csv").write_text("\n".join(["item_id,tag", *(f"{i},{tag}" for i, tag in enumerate(tags))]) + "\n")
        log = load_log(_console(), DataSource("file", file), world=None, seed=0, keep=tmp_path / "runs" / run / "log")
        return {row["text"]: row["code"] for row in log.ids.to_pylist()}

    (tmp_path / "views.csv").write_text("user_id,item_id,time,liked\n1,0,1700000000,1\n")
    file = tmp_path / "small.toml"
    file.write_text(
        'name = "small"\ntime_zone = "UTC"\ntime_unit = "s"\n[tables]\nviews = "views.csv"\ngoods = "goods.csv"\n'
        '[impressions]\nsql = "SELECT * FROM views"\n[items]\nsql = "SELECT * FROM goods"\n'
        '[labels]\nlike = "liked"\n[tasks]\nlike = 1.0\n'
    )
    assert log_of("first", "tea") == {"tea": 1}
    small_run(tmp_path / "runs" / "first").save()
    assert log_of("second", "tea", "hats") == {"hats": 1, "tea": 2}
    FolderRegistry(tmp_path / "runs").activate("first")
    assert log_of("second", "tea", "hats") == {"tea": 1, "hats": 2}
    file.write_text(file.read_text().replace('"small"', '"other"'))
    assert log_of("third", "tea", "hats") == {"hats": 1, "tea": 2}


def test_a_data_file_is_loaded_into_memory_where_nothing_is_kept(tmp_path: Path) -> None:
    log = load_log(_console(), DataSource("file", KUAIRAND), world=None, seed=0, tables=write_folder(tmp_path))
    assert isinstance(log, ImpressionLog)
    assert len(log.impressions) == 3


def test_options_of_another_source_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--world: expected `--data world` as well"):
        load_log(_console(), DataSource("log", tmp_path), world=tmp_path / "world.toml", seed=0)
    with pytest.raises(OptionError, match="--tables: expected a data file as `--data`"):
        load_log(_console(), DataSource("log", tmp_path), world=None, seed=0, tables=tmp_path)
