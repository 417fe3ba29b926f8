"""Training that prints its progress, for a test that kills it."""

import sys
from pathlib import Path

from pocketrank.cloud.data.log import open_log
from pocketrank.cloud.training.train import train
from tests.cloud.training.test_train import QUICK

if __name__ == "__main__":
    folder, out = map(Path, sys.argv[1:])
    train(open_log(folder), out=out, seeds=1, config=QUICK, progress=lambda stage, share: print(stage, share, flush=True))
