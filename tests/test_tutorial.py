"""The tutorial and the notebook as they stand, in a copy of the examples and on a smaller shop."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.test_docs import ROOT, blocks

SMALLER = "--users 50 --days 8"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("shop"))
    return tmp_path


def test_every_line_of_the_tutorial_and_the_notebook_runs(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": programs, "COLUMNS": "200"}
    run = partial(subprocess.run, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    said = dict[str, str]()
    server: subprocess.Popen[str] | None = None
    try:
        for block in blocks((ROOT / "docs" / "tutorial.md").read_text(), "bash"):
            for line in block.code.strip().splitlines():
                words = shlex.split(line.replace("8080", str(port)).replace("py examples/shop", f"py examples/shop {SMALLER}"))
                if words[:2] == ["pocketrank", "serve"]:
                    server = subprocess.Popen(
                        words, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                    )
                    assert server.stdout is not None
                    assert "Serving on" in server.stdout.readline()
                    continue
                done = run(words, timeout=300)
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
                said[" ".join(words[:3])] = done.stdout + done.stderr
                if words[0] == "curl":
                    said[words[2].rsplit("/", 1)[1]] = done.stdout
    finally:
        if server is not None:
            server.terminate()
            server.communicate(timeout=30)
    page, receipt = json.loads(said["page"]), json.loads(said["feedback"])
    assert len(page["candidates"]["item_id"]["data"]) == 3
    assert all(re.fullmatch(r"P-[a-z]{2}\d{4}", item) for item in page["candidates"]["item_id"]["data"])
    assert "pxtr_purchase" in page["candidates"]["floats"]["names"]
    assert (receipt["accepted"], receipt["refused"]) == (1, [])
    assert "on_device" in said["pocketrank emulate --server"]
    # The cells of the notebook one after the other, where the tutorial has left its run and its bundle.
    cells = json.loads((folder / "examples" / "shop.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert re.search(r"the order changed after [1-8] of 8 swipes", done.stdout)
