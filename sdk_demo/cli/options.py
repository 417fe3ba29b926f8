"""Parsers of option values. Their errors say what to write instead.

Commands call them instead of typer's hooks, so that a wrong value is reported like any other error of Pocketrank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal, TypeVar

from pocketrank.sdk_demo.cli.errors import OptionError

__all__ = ["POLICIES", "PRESET_NAMES", "DataSource", "parse_date", "parse_list", "parse_source"]

POLICIES = ("cloud_order", "on_device", "oracle")
"""Default policies of an emulated phone: the lower bound, the product, and the upper bound."""

PRESET_NAMES = ("tiny", "full", "paper")
"""Keys of `pocketrank.cloud.models.presets.PRESETS`, repeated here because that module imports torch."""

_Value = TypeVar("_Value", bound=str)


@dataclass(frozen=True)
class DataSource:
    """Source of impressions: the simulated world, a data file, or the folder of a log."""

    kind: Literal["world", "file", "log"]
    path: Path | None = None


def parse_source(text: str, option: str = "--data") -> DataSource:
    """Parse `world`, `FILE.toml` or the folder of a log. Raises `OptionError`. What reads them checks what they hold."""
    if text == "world":
        return DataSource("world")
    path = Path(text).expanduser()
    if path.suffix.lower() == ".toml":
        return DataSource("file", path)
    if text and path.is_dir():
        return DataSource("log", path)
    raise OptionError(
        option, "`world`, a data file `FILE.toml`, or the folder of a log that `pocketrank data import` wrote", text
    )


def parse_list(text: str, allowed: Sequence[_Value], option: str) -> tuple[_Value, ...]:
    """Parse `a,b,c` into values of `allowed`, in the given order and without repeats. Raises `OptionError`."""
    names = [name.strip() for name in text.split(",")]
    known = {str(value): value for value in allowed}
    for name in names:
        if name not in known:
            raise OptionError(option, f"a comma list of {', '.join(known)}", text)
    return tuple(known[name] for name in dict.fromkeys(names))


def parse_date(text: str, option: str) -> date:
    """Parse a day such as `2022-05-04`. Raises `OptionError`."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise OptionError(option, "a day as YYYY-MM-DD", text) from None
