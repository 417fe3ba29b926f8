import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.device.contract import ContractError, id_code
from pocketrank.pages import Ids, UnknownIdError
from pocketrank.pages import ids as module


@given(st.lists(st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()), unique=True, max_size=20))
def test_texts_come_back_from_their_codes(texts: list[str]) -> None:
    ids = Ids(texts)
    codes = ids.codes(texts)
    assert codes.dtype == np.int64
    assert codes.tolist() == [id_code(text) for text in texts]
    assert ids.ids(codes) == texts
    assert len(ids) == len(texts)


def test_whole_numbers_are_their_own_codes() -> None:
    numbers = [0, -1, (1 << 63) - 1, -(1 << 63)]
    ids = Ids(np.array(numbers))
    assert ids.codes(numbers).tolist() == numbers
    assert ids.ids(np.array(numbers)) == numbers


def test_ids_may_be_added_and_known_ones_keep_their_codes() -> None:
    ids = Ids(["a"])
    before = ids.codes(["a"]).tolist()
    ids.add(np.array(["b", "a"]))
    assert len(ids) == 2
    assert ids.codes(["a"]).tolist() == before


def test_two_texts_never_have_one_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """With hashes of 3 bits, of which there are only eight."""
    choices = module.code_choices
    monkeypatch.setattr(module, "code_choices", lambda text: choices(text, bits=3))
    ids = Ids("abcdefgh")
    codes = ids.codes(list("abcdefgh"))
    assert sorted(codes.tolist()) == list(range(8))
    assert ids.ids(codes) == list("abcdefgh")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", ""], r"Expected an id of 1 to 256 characters, got 0 characters - at `ids\[1\]`"),
        ([1, 1 << 63], r"Expected a text, or a whole number of 64 bits with sign, got 9223372036854775808 - at `ids\[1\]`"),
        ([1.5], r"got 1.5 - at `ids\[0\]`"),
        (["a", 1], r"Expected ids that are all texts or all whole numbers, got 1 - at `ids\[1\]`"),
    ],
)
def test_what_is_no_id_is_refused(ids: list[str | int], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Ids(ids)


def test_unknown_ids_and_codes_are_named() -> None:
    ids = Ids(["a"])
    with pytest.raises(UnknownIdError, match=r"^Expected one of the ids that were added, got 'b' - at `ids\[1\]`$"):
        ids.codes(["a", "b"])
    with pytest.raises(UnknownIdError, match=r"^Expected .*, got 5 - at `codes\[0\]`$"):
        ids.ids([5])
