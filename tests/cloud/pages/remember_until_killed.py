"""Remembers the ids that each line of stdin names, and prints their codes, for a test that kills it."""

import json
import sys
from pathlib import Path

from pocketrank.cloud.pages.own_ids import OwnIds
from pocketrank.cloud.published.id_texts import PublishedIds

if __name__ == "__main__":
    published, path, bits = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    ids = OwnIds(PublishedIds.open(published, bits), path)
    for line in sys.stdin:
        texts = json.loads(line)
        codes = ids.remember([("user_id", text) for text in texts])
        print(json.dumps([codes["user_id", text] for text in texts]), flush=True)
