"""Writes a trace without end, a line for each decision, until somebody kills it. Arguments: the bundle's folder, the trace."""

import sys
from pathlib import Path

from device.bundle import Bundle
from device.ranker import Ranker
from device.trace import Tracer
from tests.device.test_trace import Moment

if __name__ == "__main__":
    moment, ranker, tracer = Moment(), Ranker.open(Bundle.open(Path(sys.argv[1]))), Tracer(Path(sys.argv[2]))
    while tracer.stopped is None:
        moment.write(tracer, ranker)
        print(tracer.written, flush=True)
