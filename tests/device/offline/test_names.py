import subprocess
import sys

import pytest

from pocketrank.device import offline

HEAVY = ("sqlite3", "http.client", "nacl", "pocketrank.device.network")


@pytest.mark.parametrize("name", offline.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(offline, name).__name__ == name
    assert name in dir(offline)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match=r"`pocketrank\.device\.offline` has no `Nothing`"):
        offline.Nothing  # noqa: B018


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("pocketrank.device.offline.outbox", HEAVY),
        ("pocketrank.device.session.session", HEAVY),
        ("pocketrank.device.bundle", ("nacl", "http.client")),
        ("pocketrank.device.network", ("nacl", "http.client", "ssl")),
    ],
)
def test_an_import_loads_only_what_it_needs(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(heavy) & set(loaded)
