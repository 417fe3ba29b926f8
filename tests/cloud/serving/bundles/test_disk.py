import os
from pathlib import Path

import pytest

from pocketrank.cloud.serving.bundles.disk import replace_file


def test_a_file_is_replaced_whole_with_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "f"
    replace_file(path, b"old", 0o600)
    replace_file(path, b"new", 0o600)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    assert os.listdir(tmp_path) == ["f"]


def test_what_cannot_be_replaced_stays_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "f" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        replace_file(tmp_path / "f", b"new")
    assert os.listdir(tmp_path) == ["f"]
