"""The whole description of a simulated world, read from one TOML file and checked.

`default.toml` in this folder has a value for every field; a file given with `--world` replaces all of it, so that exactly one
file describes a world. Unknown keys, missing keys, wrong types and values out of range raise a `WorldConfigError` that names
the key. `parameters` documents each key.
"""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from pocketrank.sdk_demo.world.errors import WorldConfigError
from pocketrank.sdk_demo.world.parameters import (
    ActionConfig,
    CatalogueConfig,
    ExitConfig,
    PolicyConfig,
    Section,
    SignalConfig,
    SimulatedLogConfig,
    TargetConfig,
    UserConfig,
    UserSessionConfig,
    UtilityConfig,
    WatchConfig,
    Whole,
)

__all__ = ["DEFAULT_WORLD", "WorldConfig"]

DEFAULT_WORLD = Path(__file__).with_name("default.toml")
"""File of the world that is used when no file is named."""


class WorldConfig(Section, frozen=True, kw_only=True):
    """A whole simulated world."""

    seed: Whole
    """Seed of catalogue and users and, combined with a run's own seed, of all events."""
    catalogue: CatalogueConfig
    """The items."""
    users: UserConfig
    """The users."""
    session: UserSessionConfig
    """The hidden state of a session."""
    utility: UtilityConfig
    """The utility of an item."""
    watch: WatchConfig
    """Watch time."""
    actions: ActionConfig
    """Like, follow, dislike."""
    exit: ExitConfig
    """When users leave."""
    signals: SignalConfig
    """Device signals."""
    policy: PolicyConfig
    """The logging policy."""
    log: SimulatedLogConfig
    """The log."""
    targets: TargetConfig
    """Rates that calibration aims at."""

    @classmethod
    def load(cls, path: Path | None = None) -> WorldConfig:
        """Read a world from a TOML file, `DEFAULT_WORLD` when `path` is None.

        Raises `WorldConfigError` for a file that cannot be read, is not TOML, or has a wrong, missing or unknown key.
        """
        file = DEFAULT_WORLD if path is None else path
        try:
            raw = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise WorldConfigError(str(file), "a readable file", error.strerror or str(error)) from error
        except UnicodeDecodeError as error:
            raise WorldConfigError(str(file), "UTF-8 text", str(error)) from error
        except tomllib.TOMLDecodeError as error:
            raise WorldConfigError(str(file), "TOML", str(error)) from error
        return cls.parse(raw, file=str(file))

    @classmethod
    def parse(cls, raw: dict[str, Any], *, file: str = "world") -> WorldConfig:
        """Check a decoded TOML document; errors name `file`. Raises `WorldConfigError`."""
        _reject_infinite(raw, "$", file)
        try:
            config = msgspec.convert(raw, cls)
        except msgspec.ValidationError as error:
            raise _config_error(str(error), raw, file) from error
        _check(config, file)
        return config


def _config_error(message: str, raw: dict[str, Any], file: str) -> WorldConfigError:
    """Turn msgspec's "what - at `where`" into a `WorldConfigError`, with the value if the path leads to one."""
    what, _, tail = message.partition(" - at `")
    where = tail.rstrip("`") or "$"
    if what.startswith("Object missing required field"):
        return WorldConfigError(f"{file}: {where}", f"the key {what.rsplit(' ', 1)[1]}", "none")
    if what.startswith("Object contains unknown field"):
        return WorldConfigError(f"{file}: {where}", "only known keys", what.rsplit(" ", 1)[1])
    node: Any = raw
    for key in where.split(".")[1:]:
        node = node.get(key) if isinstance(node, dict) else None
    return WorldConfigError(f"{file}: {where}", what.removeprefix("Expected ").partition(", got ")[0], repr(node))


def _reject_infinite(node: Any, where: str, file: str) -> None:
    """Raise for nan and inf, which TOML allows and no parameter may be."""
    if isinstance(node, dict):
        for key, value in node.items():
            _reject_infinite(value, f"{where}.{key}", file)
    elif isinstance(node, float) and not math.isfinite(node):
        raise WorldConfigError(f"{file}: {where}", "a finite number", repr(node))


def _check(config: WorldConfig, file: str) -> None:
    """Check relations between keys."""

    def need(ok: bool, path: str, expected: str, got: object) -> None:
        if not ok:
            raise WorldConfigError(f"{file}: $.{path}", expected, repr(got))

    catalogue, policy = config.catalogue, config.policy
    online = round(catalogue.items * catalogue.initial_share)
    need(catalogue.topics <= catalogue.items, "catalogue.topics", f"at most {catalogue.items} (items)", catalogue.topics)
    need(
        config.users.interests <= catalogue.topics,
        "users.interests",
        f"at most {catalogue.topics} (topics)",
        config.users.interests,
    )
    special = catalogue.music_topics + catalogue.long_topics
    need(
        special <= catalogue.topics, "catalogue.music_topics", f"with long_topics at most {catalogue.topics} (topics)", special
    )
    need(
        catalogue.duration_min_s < catalogue.duration_max_s,
        "catalogue.duration_min_s",
        f"less than duration_max_s ({catalogue.duration_max_s})",
        catalogue.duration_min_s,
    )
    need(policy.page_size <= online, "policy.page_size", f"at most {online} (items online at the start)", policy.page_size)
    need(policy.shown <= policy.page_size, "policy.shown", f"at most {policy.page_size} (page_size)", policy.shown)
    need(config.watch.effective_s < config.watch.long_s, "watch.effective_s", "less than long_s", config.watch.effective_s)
    targets = config.targets
    need(targets.long_view < targets.effective_view, "targets.long_view", "less than effective_view", targets.long_view)
