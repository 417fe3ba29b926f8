import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from pocketrank.cloud.data.kuairand_tables import LOG_COLUMNS, USER_COLUMNS, VIDEO_COLUMNS
from pocketrank.sdk_demo.cli.errors import OptionError
from pocketrank.sdk_demo.cli.options import DataSource
from pocketrank.sdk_demo.cli.source import load_log
from pocketrank.sdk_demo.world import DEFAULT_WORLD


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


def _kuairand(folder: Path) -> Path:
    """Two impressions of one video by one user, in the public layout."""
    files = {
        "log_standard_4_08_to_4_21_pure.csv": (
            LOG_COLUMNS,
            [{"time_ms": "1650000000000"}, {"time_ms": "1650000060000", "is_like": "1"}],
        ),
        "user_features_pure.csv": (USER_COLUMNS, [{}]),
        "video_features_basic_pure.csv": (VIDEO_COLUMNS, [{"upload_dt": "2022-04-01"}]),
    }
    for name, (columns, rows) in files.items():
        lines = [",".join(row.get(column, "0") for column in columns) for row in rows]
        (folder / name).write_text("\n".join([",".join(columns), *lines]) + "\n")
    return folder


def test_the_world_is_simulated_with_progress(tmp_path: Path) -> None:
    console = _console()
    log = load_log(console, DataSource("world"), world=_small_world(tmp_path), seed=1)
    assert log.simulated
    assert log.impressions.num_rows > 0
    assert "simulating the log" in _text(console)
    assert "100 %" in _text(console)


def test_the_seed_decides_the_simulated_log(tmp_path: Path) -> None:
    world = _small_world(tmp_path)
    digests = [load_log(_console(), DataSource("world"), world=world, seed=seed).digest() for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_a_kuairand_folder_is_loaded_with_progress(tmp_path: Path) -> None:
    console = _console()
    log = load_log(console, DataSource("kuairand", _kuairand(tmp_path)), world=None, seed=0)
    assert not log.simulated
    assert log.impressions["like"].to_pylist() == [False, True]
    assert "loading the log" in _text(console)
    assert "100 %" in _text(console)


def test_a_world_file_needs_the_world(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--world: expected `--data world` as well"):
        load_log(_console(), DataSource("kuairand", tmp_path), world=tmp_path / "world.toml", seed=0)
