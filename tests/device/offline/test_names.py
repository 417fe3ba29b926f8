import subprocess
import sys

import pytest

HEAVY = ("sqlite3", "http.client", "nacl", "pocketrank.device.network")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("pocketrank.device.offline.outbox", HEAVY),
        ("pocketrank.device.session.session", HEAVY),
        ("pocketrank.device.bundle.bundle", ("nacl", "http.client")),
        ("pocketrank.device.network.transport", ("nacl", "http.client", "ssl")),
    ],
)
def test_an_import_loads_only_what_it_needs(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(heavy) & set(loaded)
