"""What every test runs under: shapes and types checked at each call of `cloud` and `export`, and no deadlines.

`device` is left out of the hook: its base install has neither jaxtyping nor beartype.
"""

import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""The type checker. An int passes for a float, as PEP 484 and mypy have it."""

# Before any test module imports them; modules that were imported earlier stay unchecked.
install_import_hook(["pocketrank.cloud", "pocketrank.export"], f"{__name__}.checked")

# A deadline would be a timing assertion, and the machine is shared.
settings.register_profile("pocketrank", deadline=None)
settings.load_profile("pocketrank")

LONG = (
    "tests/benchmarks/latency/test_latency.py",
    "tests/test_tutorial.py",
    "tests/benchmarks/test_serving.py",
    "tests/benchmarks/test_emulation.py",
    "tests/sdk_demo/emulator/test_run.py",
    "tests/export/",
)
"""Files that take minutes. Of several processes one would still run them when the others are done, so they come first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, and keep the order of all others."""

    def rank(item: pytest.Item) -> int:
        return next((at for at, path in enumerate(LONG) if item.nodeid.startswith(path)), len(LONG))

    items.sort(key=rank)
