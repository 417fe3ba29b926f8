import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pocketrank.cloud.files import replace_folder, replacing, write_atomically


def test_a_file_is_replaced_whole_with_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"old", 0o600)
    write_atomically(path, b"new", 0o600)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    assert os.listdir(tmp_path) == ["f"]


def test_the_permissions_hold_while_the_file_is_written(tmp_path: Path) -> None:
    with replacing(tmp_path / "f", 0o600) as part:
        assert part.stat().st_mode & 0o777 == 0o600
        assert part.parent == tmp_path


def test_what_cannot_be_replaced_stays_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "f" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "f", b"new")
    assert os.listdir(tmp_path) == ["f"]


def test_a_folder_is_replaced_with_all_that_is_in_it(tmp_path: Path) -> None:
    for content in ("old", "new"):
        (tmp_path / "part" / "inside").mkdir(parents=True)
        (tmp_path / "part" / "inside" / content).write_text(content)
        replace_folder(tmp_path / "part", tmp_path / "folder")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "folder",
        "folder/inside",
        "folder/inside/new",
    ]


def write_and_fail(path: Path) -> None:
    with replacing(path) as part:
        part.write_bytes(b"half")
        raise ValueError("in the middle")


def test_an_error_in_the_block_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_atomically(tmp_path / "f", b"old")
    with pytest.raises(ValueError, match="in the middle"):
        write_and_fail(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    with replacing(tmp_path / "f") as first, replacing(tmp_path / "f") as second:
        first.write_bytes(b"first")
        second.write_bytes(b"2")
    assert (tmp_path / "f").read_bytes() == b"first"  # the outer block ends last
    assert os.listdir(tmp_path) == ["f"]


_FULL = """
import resource, sys
from pathlib import Path
from pocketrank.cloud.files import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(Path(sys.argv[1]), bytes(5000))
except OSError as error:
    print(error.strerror)
"""

_KILLED = """
import os, signal, sys
from pathlib import Path
from pocketrank.cloud.files import replacing
with replacing(Path(sys.argv[1])) as part:
    part.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_atomically(tmp_path / "f", b"old")
    run = subprocess.run([sys.executable, "-c", _FULL, tmp_path / "f"], capture_output=True, text=True, timeout=60)
    assert run.stdout == "File too large\n", run.stderr
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_killed_writer_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_atomically(tmp_path / "f", b"old")
    run = subprocess.run([sys.executable, "-c", _KILLED, tmp_path / "f"], timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert (tmp_path / "f").read_bytes() == b"old"
    assert len(list(tmp_path.glob("f.*.part"))) == 1
