"""The dictionaries of a run."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.cloud.published.id_texts import PublishedIds
from pocketrank.cloud.published.published import PublishedError
from pocketrank.device.contract import id_code
from tests.cloud.id_dictionaries import coded

TEXTS = ["Ünïcödé", "9007199254740993", "u-1", " u-1", "a\0b", "x" * 256]


def codes(texts: list[str]) -> list[int]:
    return [id_code(text) for text in texts]


def test_texts_and_codes_are_exact(tmp_path: Path) -> None:
    saved = PublishedIds.save(tmp_path, {"item_id": (codes(TEXTS), TEXTS), "user_id": ([], [])})
    for ids in (saved, PublishedIds.open(tmp_path)):
        assert ids.kinds == {"item_id", "user_id"}
        assert [ids.code("item_id", text) for text in TEXTS] == codes(TEXTS)
        backwards = np.array(codes(TEXTS)[::-1])
        assert ids.texts("item_id", backwards) == TEXTS[::-1]
        assert ids.text("item_id", id_code("u-1")) == "u-1"
        ids.check("item_id", backwards)


def test_what_is_not_in_a_dictionary(tmp_path: Path) -> None:
    ids = PublishedIds.save(tmp_path, {"item_id": (codes(TEXTS), TEXTS), "user_id": ([], [])})
    assert [ids.code("item_id", "u-2"), ids.code("user_id", "u-1")] == [None, None]
    assert [ids.text("item_id", -1), ids.text("user_id", 2**63 - 1)] == [None, None]
    with pytest.raises(KeyError, match="7"):
        ids.texts("item_id", np.array([id_code("u-1"), 7]))
    with pytest.raises(PublishedError, match="Expected a text for every `user_id` of the run, got none for the code 5"):
        ids.check("user_id", np.array([5]))


def test_without_files_all_ids_are_whole_numbers(tmp_path: Path) -> None:
    ids = PublishedIds.open(tmp_path)
    assert ids.kinds == frozenset()
    large = np.array([2**53 + 1, 1_234_567_890_123_456_789, -(2**63), 2**63 - 1])
    assert ids.texts("item_id", large) == ["9007199254740993", "1234567890123456789", str(-(2**63)), str(2**63 - 1)]
    ids.check("item_id", large)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(8, 12))
def test_colliding_texts_have_codes_of_their_own(tmp_path_factory: pytest.TempPathFactory, count: int, bits: int) -> None:
    codes = coded((f"u-{number}" for number in range(count)), bits)
    given_codes, texts = list(codes.values()), list(codes)
    ids = PublishedIds.save(tmp_path_factory.mktemp("ids"), {"item_id": (given_codes, texts)}, bits)
    assert [ids.code("item_id", text) for text in texts] == given_codes
    assert ids.texts("item_id", np.array(given_codes)) == texts


def test_an_index_without_its_files(tmp_path: Path) -> None:
    PublishedIds.save(tmp_path, {"item_id": (codes(TEXTS), TEXTS)})
    np.save(tmp_path / "ids_item_id_offset.npy", np.array([0, 5]))
    with pytest.raises(PublishedError, match="fit together - at ids of `item_id`"):
        PublishedIds.open(tmp_path)
    (tmp_path / "ids_item_id_offset.npy").unlink()
    with pytest.raises(PublishedError, match="ids_item_id_offset"):
        PublishedIds.open(tmp_path)
    (tmp_path / "ids.json").write_text("[")
    with pytest.raises(PublishedError, match="Expected the dictionaries of a run"):
        PublishedIds.open(tmp_path)


@pytest.mark.parametrize(
    ("kind", "given_codes", "texts", "message"),
    [
        ("item_id", codes(["a", "a"]), ["a", "a"], "each code once"),
        ("item_id", [id_code("a"), id_code("a\x001")], ["a", "a"], "by the rules"),
        ("item_id", [1], ["a"], "Expected the code of `a` by the rules of a dictionary, got 1 - at ids of `item_id`"),
        ("item_id", codes([""]), [""], "1 to 256 characters, got 0"),
        ("item_id", codes(["a" * 257]), ["a" * 257], "1 to 256 characters, got 257"),
        ("item_id", codes(["a"]), ["a", "b"], "as many texts as codes, got 2 and 1"),
        ("../x", codes(["a"]), ["a"], "a kind of ids"),
    ],
)
def test_dictionaries_that_are_refused(
    tmp_path: Path, kind: str, given_codes: list[int], texts: list[str], message: str
) -> None:
    with pytest.raises(PublishedError, match=message):
        PublishedIds.save(tmp_path, {kind: (given_codes, texts)})
    assert list(tmp_path.iterdir()) == []
