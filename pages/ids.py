"""A team's own ids of one kind, texts or whole numbers, and the codes that stand for them on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import ContractError, as_code, code_choices
from pocketrank.pages.errors import UnknownIdError

__all__ = ["Ids"]

V = TypeVar("V")


class Ids:
    """A dictionary of ids and their codes. It may grow.

    A text has the code that every dictionary of Pocketrank gives it (`pocketrank.device.contract.ids`), and a whole number of
    64 bits is its own code; one dictionary holds either. Two ids never have one code. Of two texts with the same hash, which is
    next to impossible, the first to be added has it. So add them in a fixed order.
    """

    def __init__(self, ids: Iterable[int | str] = ()) -> None:
        self._code: dict[int | str, int] = {}
        self._id: dict[int, int | str] = {}
        self.add(ids)

    def __len__(self) -> int:
        return len(self._code)

    def add(self, ids: Iterable[int | str]) -> None:
        """Add ids; those that are known keep their codes. Raises `ContractError` for an id that no cloud accepts."""
        for i, each in enumerate(ids):
            own = each.item() if isinstance(each, np.generic) else each
            if own not in self._code:
                code = self._free_code(own, f"ids[{i}]")
                self._code[own], self._id[code] = code, own

    def codes(self, ids: Sequence[int | str] | NDArray[np.generic]) -> NDArray[np.int64]:
        """Return the codes [n] of ids. Raises `UnknownIdError`."""
        return np.array([_look_up(self._code, each, f"ids[{i}]") for i, each in enumerate(_plain(ids))], np.int64)

    def ids(self, codes: Sequence[int] | NDArray[np.int64]) -> list[int | str]:
        """Return the ids [n] of codes, as events carry them. Raises `UnknownIdError`."""
        return [_look_up(self._id, each, f"codes[{i}]") for i, each in enumerate(_plain(codes))]

    def _free_code(self, own: int | str, where: str) -> int:
        if type(own) is int and -(1 << 63) <= own < 1 << 63:
            code = own
        elif isinstance(own, str):
            as_code(own, where)  # its length, and that it is Unicode
            code = next(code for code in code_choices(own) if code not in self._id)
        else:
            raise ContractError(where, "a text, or a whole number of 64 bits with sign", repr(own)[:60])
        if self._id and isinstance(next(iter(self._id.values())), str) != isinstance(own, str):
            raise ContractError(where, "ids that are all texts or all whole numbers", repr(own)[:60])
        return code


def _look_up(table: Mapping[Any, V], key: object, where: str) -> V:
    try:
        return table[key]
    except (KeyError, TypeError):  # the second for a value that is no key at all, such as a list
        raise UnknownIdError(f"`{where}`", "one of the ids that were added", repr(key)[:60]) from None


def _plain(values: Sequence[object] | NDArray[np.generic]) -> list[object]:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)
