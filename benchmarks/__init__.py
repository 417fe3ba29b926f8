"""Every performance promise, measured beside a named peer or limit in the same run: `python -m benchmarks.NAME --json FILE`."""

from __future__ import annotations

import os

# One thread, as on a phone. The libraries read this once, when they are first imported, and this file comes before them.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
