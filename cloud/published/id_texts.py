"""The dictionaries of a run: the texts of its ids, mapped from files without pyarrow.

::

    ids.json                 the kinds that have a dictionary; without the file all ids are whole numbers
    ids_<kind>_code.npy      [n] int64 codes, ascending
    ids_<kind>_offset.npy    [n + 1] int64, where each text begins in the bytes, and their end
    ids_<kind>_text.npy      [bytes] uint8, the texts in UTF-8 one after the other

`pocketrank.device.contract.ids` has the rules of a dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.files import write_atomically
from pocketrank.cloud.published.published import PublishedError
from pocketrank.device.contract import CODE_BITS, ID_TEXT_MAX, code_choices, id_code

__all__ = ["PublishedIds"]

_KIND = re.compile(r"[a-z][a-z0-9_]{0,47}")
_INDEX = "ids.json"

Int = NDArray[np.int64]


class _Texts(NamedTuple):
    """The dictionary of one kind."""

    code: Int
    """[n] ascending"""
    offset: Int
    """[n + 1]"""
    data: memoryview
    """[bytes]"""

    def at(self, place: int) -> str:
        begin, end = self.offset[place : place + 2].tolist()
        return str(self.data[begin:end], "utf-8")

    def places(self, codes: Int) -> tuple[Int, NDArray[np.bool_]]:
        """Return the places [m] of codes [m], and which of them are known. The place of an unknown code means nothing."""
        if not len(self.code):
            return np.zeros(len(codes), np.int64), np.zeros(len(codes), np.bool_)
        place = self.code.searchsorted(codes)
        place[place == len(self.code)] = 0
        return place, self.code[place] == codes

    def find(self, code: int) -> str | None:
        """Return the text of a code; None for an unknown code."""
        place = int(self.code.searchsorted(code))
        return self.at(place) if place < len(self.code) and self.code[place] == code else None


class PublishedIds:
    """The dictionaries of a run, none by default. `bits` is the width of their hashes.

    Safe to call from several threads.
    """

    def __init__(self, texts: Mapping[str, _Texts] | None = None, bits: int = CODE_BITS) -> None:
        self._texts, self.bits = dict(texts or {}), bits

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of ids that are texts. The ids of any other kind are whole numbers."""
        return frozenset(self._texts)

    def code(self, kind: str, text: str) -> int | None:
        """Return the code of a text; None for a text that the run does not know. `kind` is one of `kinds`."""
        texts = self._texts[kind]
        for code in code_choices(text, self.bits):
            found = texts.find(code)
            if found is None or found == text:
                return None if found is None else code
        raise AssertionError  # the choices have no end

    def text(self, kind: str, code: int) -> str | None:
        """Return the text of a code; None for a code that the run does not know. `kind` is one of `kinds`."""
        return self._texts[kind].find(code)

    def free(self, kind: str, text: str) -> int:
        """Return the first code for a text, which the run does not know, that no text of the run holds."""
        texts = self._texts[kind]
        return next(code for code in code_choices(text, self.bits) if texts.find(code) is None)

    def texts(self, kind: str, codes: Int) -> list[str]:
        """Return the texts of codes [n], which the run knows. The text of a whole number is its decimal form.

        Raises KeyError for an unknown code.
        """
        if kind not in self._texts:
            return list(map(str, codes.tolist()))
        texts = self._texts[kind]
        place, known = texts.places(codes)
        if not known.all():
            raise KeyError(int(codes[~known][0]))
        begin, end = texts.offset.take(place).tolist(), texts.offset.take(place + 1).tolist()
        return [str(texts.data[first:last], "utf-8") for first, last in zip(begin, end, strict=True)]

    def check(self, kind: str, codes: Int) -> None:
        """Raise `PublishedError` unless every one of `codes` [n] has a text, or the kind has no dictionary."""
        if kind in self._texts:
            _, known = self._texts[kind].places(codes)
            if not known.all():
                code = int(codes[~known][0])
                raise PublishedError(f"Expected a text for every `{kind}` of the run, got none for the code {code}")

    @classmethod
    def save(
        cls, folder: Path, kinds: Mapping[str, tuple[Sequence[int] | Int, Sequence[str]]], bits: int = CODE_BITS
    ) -> PublishedIds:
        """Write a dictionary for each of `kinds`: codes [n], in any order, and their texts [n]. Returns the opened files.

        Call it before `Published.save`. Raises `PublishedError`, and then writes nothing, for a text that is empty or longer
        than `ID_TEXT_MAX`, and for a code or a text that occurs twice or that is not as the rules of a dictionary say.
        """
        written = {kind: _table(kind, codes, texts) for kind, (codes, texts) in kinds.items()}
        cls(written, bits)._check_rules()  # or some text would not be found
        folder.mkdir(parents=True, exist_ok=True)
        for kind, table in written.items():
            for name, array in zip(("code", "offset", "text"), (*table[:2], np.asarray(table.data)), strict=True):
                np.save(folder / f"ids_{kind}_{name}.npy", array)
        write_atomically(folder / _INDEX, msgspec.json.encode({"kinds": sorted(written)}))
        return cls.open(folder, bits)

    def _check_rules(self) -> None:
        for kind, table in self._texts.items():
            for place, code in enumerate(table.code.tolist()):
                text = table.at(place)
                if id_code(text, self.bits) != code and self.code(kind, text) != code:
                    raise PublishedError(
                        f"Expected the code of `{text}` by the rules of a dictionary, got {code} - at ids of `{kind}`"
                    )

    @classmethod
    def open(cls, folder: Path, bits: int = CODE_BITS) -> PublishedIds:
        """Map the dictionaries in `folder`. Raises `PublishedError`."""
        try:
            index = msgspec.json.decode((folder / _INDEX).read_bytes(), type=dict[str, list[str]])
            return cls({kind: _open(folder, kind) for kind in index["kinds"]}, bits)
        except FileNotFoundError as error:
            if error.filename == str(folder / _INDEX):
                return cls(bits=bits)
            raise PublishedError(f"Expected the dictionaries of a run, got: {error} - at {folder}") from error
        except (OSError, ValueError, KeyError, msgspec.DecodeError) as error:
            raise PublishedError(f"Expected the dictionaries of a run, got: {error} - at {folder}") from error


def _table(kind: str, codes: Sequence[int] | Int, texts: Sequence[str]) -> _Texts:
    if not _KIND.fullmatch(kind):
        raise PublishedError(f"Expected a kind of ids such as `item_id`, got `{kind}`")
    code = np.asarray(codes, np.int64)
    if len(code) != len(texts):
        raise PublishedError(f"Expected as many texts as codes, got {len(texts)} and {len(code)} - at ids of `{kind}`")
    order = np.argsort(code, kind="stable")
    code = code[order]
    if len(repeated := code[1:][code[1:] == code[:-1]]):
        raise PublishedError(f"Expected each code once, got {repeated[0]} twice - at ids of `{kind}`")
    offset, data = np.zeros(len(code) + 1, np.int64), bytearray()
    for row, place in enumerate(order):
        text = texts[place]
        if not 1 <= len(text) <= ID_TEXT_MAX:
            raise PublishedError(f"Expected ids of 1 to {ID_TEXT_MAX} characters, got {len(text)} - at ids of `{kind}`")
        data += text.encode()
        offset[row + 1] = len(data)
    return _Texts(code, offset, memoryview(data))


def _open(folder: Path, kind: str) -> _Texts:
    def mapped(name: str) -> NDArray[np.generic]:
        # A plain array over the mapped bytes, because indexing a memmap takes several times as long.
        return np.asarray(np.load(folder / f"ids_{kind}_{name}.npy", mmap_mode="r", allow_pickle=False))

    code, offset, data = mapped("code"), mapped("offset"), mapped("text")
    if not (
        [array.dtype.str for array in (code, offset, data)] == ["<i8", "<i8", "|u1"]
        and code.ndim == offset.ndim == data.ndim == 1
        and len(offset) == len(code) + 1
        and offset[0] == 0
        and offset[-1] == len(data)
    ):
        raise PublishedError(f"Expected codes, offsets and bytes that fit together - at ids of `{kind}` in {folder}")
    return _Texts(code, offset, memoryview(data))  # type: ignore[arg-type]
