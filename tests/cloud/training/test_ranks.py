"""Two processes train what one trains, and none goes on alone."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pocketrank.cloud.data.log import open_log, save_log
from pocketrank.cloud.training import ranks
from pocketrank.cloud.training.train import train
from pocketrank.sdk_demo.world import World
from tests.cloud.training.train_in_ranks import WITHOUT_NOISE
from tests.sdk_demo.world.worlds import small


class StopError(Exception):
    """The first seed is done."""


def stop_in_second_seed(stage: str, share: float) -> None:
    if stage.startswith("seed 1"):
        raise StopError


def start(folder: Path, out: Path) -> list[subprocess.Popen[str]]:
    """Two processes, with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    about = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "tests.cloud.training.train_in_ranks", str(folder), str(out)]
    return [
        subprocess.Popen(
            command, env=os.environ | about | {"RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]


def test_two_processes_train_as_one_until_one_is_killed(tmp_path: Path) -> None:
    log = save_log(World(small(users=20, items=100)).simulate_log(seed=1), tmp_path / "log")
    processes = start(log.folder, tmp_path / "run")
    with pytest.raises(StopError):
        train(open_log(log.folder), out=tmp_path / "alone", seeds=2, config=WITHOUT_NOISE, progress=stop_in_second_seed)
    first, second = (process.communicate() for process in processes)

    # Of the first seed both forms of a training left the same files, which one process wrote.
    alone, together = tmp_path / "alone" / "seed-0", tmp_path / "run" / "seed-0"
    files = sorted(file.relative_to(alone) for file in alone.rglob("*.*"))
    assert files == sorted(file.relative_to(together) for file in together.rglob("*.*"))
    assert {"ranker.safetensors", "split.safetensors", "pxtr/0-0.npy", "split.npy"} <= {str(file) for file in files}
    for file in files:
        if file.suffix == ".safetensors":
            expected, found = load_file(alone / file), load_file(together / file)
            difference = torch.cat([(found[name] - weights).abs().flatten() for name, weights in expected.items()])
            # Adam divides by the size of a gradient, and so makes whole steps of those that are rounding alone.
            assert (difference < 1e-5).float().mean() > 0.999
            assert difference.max() < 1e-3
        elif file.suffix == ".npy":
            np.testing.assert_allclose(np.load(together / file), np.load(alone / file), rtol=0, atol=1e-5)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert "seed 0: split 1.0" in first[0]
    assert not second[0]

    # The second process ends when the first was killed, and says why.
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 2]
    (line,) = [line for line in second[1].splitlines() if line.startswith("error:")]
    assert "Expected 2 processes that train together, got one that ended" in line
    assert "Traceback" not in second[1]


def test_one_process_alone_has_all_of_a_batch() -> None:
    assert (ranks.rank(), ranks.processes(), ranks.is_first()) == (0, 1, True)
    assert ranks.share_of(7) == (slice(0, 7), 1.0)
    with ranks.joined(), ranks.first_alone():
        assert ranks.processes() == 1
