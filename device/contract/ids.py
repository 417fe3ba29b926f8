"""Ids as a team has them, and the codes that stand for them.

Inside, every id is a *code*, an integer of 64 bits with sign. A kind of ids (`user_id`, `item_id`) that are whole numbers of 64
bits has no dictionary: an id is its own code. The ids of any other kind are texts, and the code of a text is its hash
(`id_code`). So logs, runs and processes agree on it without asking one another.

A dictionary (kind, code, text) gives the texts back and settles collisions by these rules:

1. The code of a text is the first of `code_choices(text)` that no other text of its kind holds.
2. A text keeps its code as long as it is in the dictionary, and no code is held by two texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import md5
from itertools import count

from pocketrank.device.contract.errors import ContractError

__all__ = ["CODE_BITS", "ID_TEXT_MAX", "as_code", "code_choices", "id_code"]

CODE_BITS = 63
"""Width of a hash in bits. A code is never negative, so that it fits a signed integer of every language."""
ID_TEXT_MAX = 256
"""Maximum length of a text id in characters (Unicode code points). The minimum is 1."""


def id_code(text: str, bits: int = CODE_BITS) -> int:
    """Return the hash of a text id: the last 8 bytes of the MD5 (RFC 1321) of its UTF-8, little-endian, the lowest `bits`.

    In DuckDB it is `CAST(md5_number_lower(text) & 9223372036854775807::UBIGINT AS BIGINT)`. Raises UnicodeEncodeError for half
    of a surrogate pair.
    """
    digest = md5(text.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[8:], "little") & (1 << bits) - 1


def code_choices(text: str, bits: int = CODE_BITS) -> Iterator[int]:
    """Yield the codes that a text may have, the first one first: its hash, then those of the text with a zero byte and 1, 2, …
    appended.
    """
    yield id_code(text, bits)
    for number in count(1):
        yield id_code(f"{text}\0{number}", bits)


def as_code(id: int | str, path: str = "$") -> int:
    """Return the code of an id for a device, which has no dictionary: a whole number itself, and the hash of a text.

    `path` is the id's place in errors. Raises `ContractError` for a text that no cloud accepts.
    """
    if not isinstance(id, str):
        return id
    if not 1 <= len(id) <= ID_TEXT_MAX:
        raise ContractError(path, f"an id of 1 to {ID_TEXT_MAX} characters", f"{len(id)} characters")
    try:
        return id_code(id)
    except UnicodeEncodeError:
        raise ContractError(path, "an id in Unicode", "half of a surrogate pair") from None
