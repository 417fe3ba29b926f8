"""From the text of an option to a typed value, with errors that say what to write instead.

Parsing happens in the commands and not in typer's hooks, so that a wrong value ends like any other error of ours.
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
"""What can decide the order on an emulated phone: the floor, ours, and the ceiling that knows the user's state."""

PRESET_NAMES = ("tiny", "full", "paper")
"""Those of `pocketrank.cloud.models.presets`, known here without torch."""

_Value = TypeVar("_Value", bound=str)


@dataclass(frozen=True)
class DataSource:
    """Where impressions come from: the simulated world, or a folder in the public KuaiRand layout."""

    kind: Literal["world", "kuairand"]
    folder: Path | None = None


def parse_source(text: str, option: str = "--data") -> DataSource:
    """Read `world` or `kuairand:DIR`. Raises `OptionError`; whether the folder holds a log is for the loader to say."""
    kind, colon, folder = text.partition(":")
    if kind == "world" and not colon:
        return DataSource("world")
    if kind == "kuairand" and folder:
        return DataSource("kuairand", Path(folder).expanduser())
    raise OptionError(option, "`world` or `kuairand:DIR`", text)


def parse_list(text: str, allowed: Sequence[_Value], option: str) -> tuple[_Value, ...]:
    """Read `a,b,c`: values of `allowed` in the order given, repeats dropped. Raises `OptionError` on any other value."""
    names = [name.strip() for name in text.split(",")]
    known = {str(value): value for value in allowed}
    for name in names:
        if name not in known:
            raise OptionError(option, f"a comma list of {', '.join(known)}", text)
    return tuple(known[name] for name in dict.fromkeys(names))


def parse_date(text: str, option: str) -> date:
    """Read a day such as `2022-05-04`. Raises `OptionError`."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise OptionError(option, "a day as YYYY-MM-DD", text) from None
