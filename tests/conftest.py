"""What every test runs under: shapes and types checked at each call of `cloud` and `export`, and no deadlines.

`device` is left out of the hook: its base install has neither jaxtyping nor beartype.
"""

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
