"""The recipe: TOML that names the parts that a training makes, and their numbers.

::

    [[part]]
    use = "ranker"                    # the cloud's full ranker: `RankerTrainingConfig`
    learning_rate = 2e-3

    [[part]]
    use = "device_model"              # both forms of the device model: `device`, `joint`, `search`, `no_feedback`
    device = { epochs = 3 }

    [[part]]
    use = "features"                  # features of the moment: `pocketrank.cloud.data.features`
    statistics = [{ of = "author", days = [1, 7], rates = ["click"] }]

    [[part]]
    use = "popularity.ByHour"         # a class of your own (`part`), from the folder of the recipe

A number that is not given keeps its default. Without a `ranker` the device model learns from the scores that the log brings.

Errors::

    RecipeError                the file is not a valid recipe; says what is wrong, and where in the file
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from pocketrank.cloud.pipeline.plugin import PluginError, Plugins
from pocketrank.cloud.training.part import Part
from pocketrank.cloud.training.train import TrainConfig

__all__ = ["DEFAULT_RECIPE", "RecipeError", "read_recipe", "with_recipe", "with_settings"]

_PARTS = Plugins("part", Part, {})
_BUILT_IN = ("ranker", "device_model", "features")

DEFAULT_RECIPE: tuple[dict[str, Any], ...] = tuple({"use": use} for use in _BUILT_IN[:2])
"""Tables of the parts that are trained without a recipe."""


class RecipeError(ValueError):
    """The file is not a valid recipe. `path` says where in it, as a JSONPath."""

    def __init__(self, path: str, message: str, file: Path | None = None) -> None:
        super().__init__(f"{message} - at `{path}`" + (f" in {file}" if file else ""))
        self.path, self.message = path, message


def read_recipe(file: Path) -> Sequence[dict[str, Any]]:
    """Return the tables of the parts. The folder of the file is searched for modules of parts. Raises `RecipeError`."""
    try:
        tables = tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise RecipeError("$", f"Expected a recipe, got: {error.strerror}", file) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError("$", f"Expected TOML, got: {error}", file) from error
    parts = tables.pop("part", None)
    if tables:
        raise RecipeError(f"$.{next(iter(tables))}", "Expected `[[part]]` tables alone", file)
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise RecipeError("$.part", "Expected a `[[part]]`, got none", file)
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    return parts


def with_settings(parts: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> list[dict[str, Any]]:
    """Return the tables with each `PART.NAME[.NAME]=VALUE` of `settings` in its place; a value is TOML, or else a text.

    Raises `RecipeError`.
    """
    changed = [dict(part) for part in parts]
    for setting in settings:
        path, equals, text = setting.partition("=")
        at, _, name = path.strip().rpartition(".")
        # A part is named by its word or by the last word of its dotted name.
        use, *rest = at.split(".") if at else ("",)
        found = [part for part in changed if str(part.get("use", "")).rpartition(".")[2] == use]
        if not equals or not name or not found:
            known = ", ".join(str(part.get("use")).rpartition(".")[2] for part in changed)
            raise RecipeError(path or setting, f"Expected PART.NAME=VALUE with a part of the recipe ({known}), got {setting!r}")
        table = found[0]
        for step in rest:
            inner = table.get(step, {})
            table[step] = dict(inner) if isinstance(inner, Mapping) else {}
            table = table[step]
        try:
            table[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            table[name] = text.strip()
    return changed


def with_recipe(config: TrainConfig, parts: Sequence[Mapping[str, Any]]) -> TrainConfig:
    """Return a training of the parts, whose numbers that are not given are those of `config`. Raises `RecipeError`."""
    uses = [part.get("use") for part in parts]
    if len(set(map(str, uses))) < len(uses):
        raise RecipeError("$.part", f"Expected each part once, got {', '.join(map(str, uses))}")
    own = []
    for i, table in enumerate(parts):
        path, rest = f"$.part[{i}]", {name: value for name, value in table.items() if name != "use"}
        if table.get("use") == "ranker":
            config = replace(config, stream=_merged(config.stream or TrainConfig().stream, rest, path))
        elif table.get("use") == "features":
            config = replace(config, features=_merged(config.features, rest, path))
        elif table.get("use") == "device_model":
            for name in rest:
                if name not in ("device", "joint", "search", "no_feedback"):
                    raise RecipeError(f"{path}.{name}", "Expected `device`, `joint`, `search` or `no_feedback`")
            config = _merged(config, rest, path)
        else:
            try:
                own.append(_PARTS.make(table, path, None))
            except PluginError as error:
                known = "" if error.path != f"{path}.use" else f"; the parts of Pocketrank are {', '.join(_BUILT_IN)}"
                raise RecipeError(error.path, error.message + known) from error
    if "device_model" not in uses:
        raise RecipeError("$.part", "Expected a part `device_model`, got none")
    return replace(config, stream=config.stream if "ranker" in uses else None, parts=tuple(own))


def _merged(base: Any, changes: Mapping[str, Any], path: str) -> Any:
    """Return the config `base` with changes by name, at any depth. Raises `RecipeError` for an unknown name or another type."""
    plain = msgspec.to_builtins(base, builtin_types=(Part,)) if not isinstance(base, TrainConfig) else base.plain()
    _merge(plain, changes, path)
    try:
        made = msgspec.convert(plain, type(base), strict=True)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise RecipeError(path + where.rstrip("`"), what) from error
    except ValueError as error:
        raise RecipeError(path, str(error)) from error
    return replace(made, parts=base.parts) if isinstance(base, TrainConfig) else made


def _merge(plain: dict[str, Any], changes: Mapping[str, Any], path: str) -> None:
    for name, value in changes.items():
        if name not in plain:
            raise RecipeError(f"{path}.{name}", f"Expected one of {', '.join(plain)}, got `{name}`")
        if isinstance(plain[name], dict) and isinstance(value, Mapping):
            _merge(plain[name], value, f"{path}.{name}")
        else:
            plain[name] = value
