"""Makes the plugins that a file names: built-in ones by a word, a user's own by the dotted name of the class.

Errors::

    PluginError                the plugin cannot be made; `path` says where in the file, the message what is wrong
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import msgspec

__all__ = ["PluginError", "Plugins"]


class PluginError(ValueError):
    """The plugin cannot be made. `path` says where in the file."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{message} - at `{path}`")
        self.path, self.message = path, message


class Plugins:
    """Plugins of one kind: subclasses of `base`, each with a `Config` that its table is decoded into."""

    def __init__(self, kind: str, base: type[Any], known: Mapping[str, str]) -> None:
        """`known` maps words to dotted names of classes. A class is imported when a file names it."""
        self._kind, self._base, self._known = kind, base, dict(known)

    def is_own(self, table: Mapping[str, Any]) -> bool:
        """Return whether a table names a user's own plugin."""
        return table.get("use") not in self._known

    def make(self, table: Mapping[str, Any], path: str, resources: Any) -> Any:
        """Return the plugin that the table at `path` describes. Raises `PluginError`."""
        table = dict(table)
        use = table.pop("use", None)
        if not isinstance(use, str):
            raise PluginError(f"{path}.use", f"Expected the name of a {self._kind}, got {use!r}")
        plugin = self._class(use, f"{path}.use")
        try:
            config = msgspec.convert(table, plugin.Config)
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at `$")
            raise PluginError(path + where.rstrip("`"), what) from error
        try:
            return plugin(config, resources)
        except PluginError as error:
            raise PluginError(f"{path}.{error.path}", error.message) from error
        except (ValueError, OSError) as error:
            raise PluginError(path, str(error)) from error

    def _class(self, use: str, path: str) -> Any:
        module, _, name = self._known.get(use, use).rpartition(".")
        if not module:
            raise PluginError(path, f"Expected one of {', '.join(self._known)} or a dotted name, got {use!r}")
        try:
            found = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise PluginError(path, f"Expected a {self._kind} that can be imported, got: {error}") from error
        except Exception as error:  # the user's module may raise anything
            raise PluginError(path, f"Expected a {self._kind} that can be imported, got {error!r}") from error
        if not (isinstance(found, type) and issubclass(found, self._base)):
            raise PluginError(path, f"Expected a subclass of {self._base.__module__}.{self._base.__name__}, got {found!r}")
        return found
