"""Training with the processes that environment variables name, as under torchrun, of which one kills itself."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from pocketrank.cloud.data.log import open_log
from pocketrank.cloud.models.full_ranker import FullRankerConfig
from pocketrank.cloud.models.presets import UpperConfig
from pocketrank.cloud.models.towers import TowerConfig
from pocketrank.cloud.training import ranks
from pocketrank.cloud.training.device_model import DeviceModelConfig
from pocketrank.cloud.training.ranker import RankerTrainingConfig
from pocketrank.cloud.training.train import TrainConfig, train
from pocketrank.sdk_demo.cli.errors import exit_on_domain_error

_DEVICE = DeviceModelConfig(upper=UpperConfig(dropout=0), lower=TowerConfig(dropout=0), epochs=1)
WITHOUT_NOISE = TrainConfig(
    stream=RankerTrainingConfig(ranker=FullRankerConfig(dropout=0), update_rows_from=50),
    device=_DEVICE,
    joint=replace(_DEVICE),
    no_feedback=False,
)
"""Every process has dropout noise of its own."""


def kill_in_second_seed(stage: str, share: float) -> None:
    if stage.startswith("seed 1"):
        os.kill(os.getpid(), signal.SIGKILL)
    print(stage, share, flush=True)


if __name__ == "__main__":
    folder, out = map(Path, sys.argv[1:])
    with exit_on_domain_error(), ranks.joined():
        train(open_log(folder), out=out, seeds=2, config=WITHOUT_NOISE, progress=kill_in_second_seed)
