"""Appends and commits until it is killed: `python -m tests.cloud.streams.append_until_killed PATH`.

Each commit moves the consumer's place by one and appends one record that says so. Prints a line once it has begun.
"""

import sys
from pathlib import Path

from pocketrank.cloud.streams.event_log import NewRecord
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog

if __name__ == "__main__":
    log = SqliteEventLog(Path(sys.argv[1]))
    place = log.committed("reader").get("pages", {}).get(0, 0)
    print("begun", flush=True)
    while True:
        place += 1
        log.append("pages", [NewRecord(1, str(place).encode()), NewRecord(2, str(place).encode())])
        log.commit("reader", {"pages": {0: place}}, "samples", [NewRecord(1, str(place).encode())])
