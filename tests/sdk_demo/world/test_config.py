from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from pocketrank.sdk_demo.world import DEFAULT_WORLD, WorldConfig, WorldConfigError, WorldError


def written(folder: Path, pattern: str, replacement: str) -> Path:
    """The default world with one line changed."""
    text, found = re.subn(pattern, replacement, DEFAULT_WORLD.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found == 1
    file = folder / "world.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_default_world_is_complete_and_explicit() -> None:
    assert WorldConfig.load() == WorldConfig.load(DEFAULT_WORLD)


def test_file_replaces_the_default(tmp_path: Path) -> None:
    config = WorldConfig.load(written(tmp_path, r"^jump_rate = .*", "jump_rate = 0.5"))
    default = WorldConfig.load()
    assert config.session.jump_rate == 0.5
    assert config == msgspec.structs.replace(default, session=msgspec.structs.replace(default.session, jump_rate=0.5))


@pytest.mark.parametrize(
    ("pattern", "replacement", "path", "expected", "got"),
    [
        (r"^jump_rate = .*", "jump_rate = -0.1", "$.session.jump_rate", ">= 0", "-0.1"),
        (r"^jump_rate = .*", "jump_rate = 1.5", "$.session.jump_rate", "<= 1", "1.5"),
        (r"^jump_rate = .*", "jump_rate = nan", "$.session.jump_rate", "finite", "nan"),
        (r"^match = .*", "match = inf", "$.utility.match", "finite", "inf"),
        (r"^match = .*", 'match = "high"', "$.utility.match", "float", "'high'"),
        (r"^match = .*", "", "$.utility", "`match`", "none"),
        (r"^match = .*", "match = 1.0\nmatches = 1.0", "$.utility", "known keys", "`matches`"),
        (r"^items = .*", "items = 40.5", "$.catalogue.items", "int", "40.5"),
        (r"^count = .*", "count = 0", "$.users.count", ">= 1", "0"),
        (r"^shown = .*", "shown = 31", "$.policy.shown", "at most 30", "31"),
        (r"^page_size = .*", "page_size = 3999", "$.policy.page_size", "at most 2800", "3999"),
        (r"^interests = .*", "interests = 25", "$.users.interests", "at most 24", "25"),
        (r"^music_topics = .*", "music_topics = 20", "$.catalogue.music_topics", "at most 24", "25"),
        (r"^long_view = .*", "long_view = 0.5", "$.targets.long_view", "less than", "0.5"),
        (r"^effective_s = .*", "effective_s = 20.0", "$.watch.effective_s", "less than", "20.0"),
    ],
)
def test_bad_value_is_refused_with_its_path(
    tmp_path: Path, pattern: str, replacement: str, path: str, expected: str, got: str
) -> None:
    file = written(tmp_path, pattern, replacement)
    with pytest.raises(WorldConfigError) as caught:
        WorldConfig.load(file)
    assert caught.value.where == f"{file}: {path}"
    assert expected in caught.value.expected
    assert caught.value.got == got
    assert path in str(caught.value)


def test_missing_file_and_broken_text_are_typed_errors(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(WorldError, match=re.escape(str(missing))):
        WorldConfig.load(missing)
    broken = tmp_path / "broken.toml"
    broken.write_text("[users\ncount = 1", encoding="utf-8")
    with pytest.raises(WorldError, match="Expected TOML"):
        WorldConfig.load(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(WorldError, match="UTF-8"):
        WorldConfig.load(broken)
    with pytest.raises(WorldError):
        WorldConfig.load(tmp_path)


def test_section_of_the_wrong_kind(tmp_path: Path) -> None:
    file = tmp_path / "world.toml"
    file.write_text("seed = 1\ncatalogue = 3\n", encoding="utf-8")
    with pytest.raises(WorldConfigError) as caught:
        WorldConfig.load(file)
    assert caught.value.where.endswith("$.catalogue")
