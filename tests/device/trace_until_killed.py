"""Writes a trace without end, a line for each decision, until somebody kills it. Arguments: the bundle's folder, the trace."""

import sys
from pathlib import Path

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.reports.trace import Tracer
from tests.device.reports.test_trace import Seen

if __name__ == "__main__":
    moment, ranker, tracer = Seen(), Ranker.open(Bundle.open(Path(sys.argv[1]))), Tracer(Path(sys.argv[2]))
    while tracer.stopped is None:
        moment.write(tracer, ranker)
        print(tracer.written, flush=True)
