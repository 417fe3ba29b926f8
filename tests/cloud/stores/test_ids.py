import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketrank.cloud.stores.ids import BUCKET, IdIndex, buckets_for


def index(room: int) -> IdIndex:
    return IdIndex(np.empty((buckets_for(room), 2 * BUCKET), np.int64), fresh=True)


@pytest.mark.parametrize("ids", [0, 1, 1000, 123_456])
def test_the_number_of_buckets_is_a_prime_with_room(ids: int) -> None:
    number = buckets_for(ids)
    assert all(number % i for i in range(2, int(number**0.5) + 1))
    assert index(ids).room >= ids


def _kinds() -> dict[str, NDArray[np.int64]]:
    n = 3000
    modulus = buckets_for(n)
    return {
        "consecutive": np.arange(n) - n // 2,
        "random": np.random.default_rng(0).integers(-(2**63), 2**63 - 1, n, np.int64),
        "powers": np.arange(n) << 40,
        "all of one bucket": (np.arange(n) - n // 2) * modulus + 5,
        "all of the last bucket": np.arange(n) * modulus - 1,
        "as free slots are": np.arange(n) % modulus + modulus * (np.arange(n) // modulus),
    }


@pytest.mark.parametrize("kind", _kinds())
def test_every_id_is_found_and_no_other(kind: str) -> None:
    ids = _kinds()[kind]
    made, positions = index(len(ids)), np.arange(1, len(ids) + 1)
    others = np.setdiff1d(np.concatenate([ids + 1, ids * 3, np.arange(-200, 200)]), ids)
    assert not made(ids).any()
    for part in np.array_split(np.arange(len(ids)), 5):
        made.insert(ids[part], positions[part])
    assert made(ids).tolist() == positions.tolist()
    assert not made(others).any()
    mixed = np.concatenate([others[:50], ids[:50], others[50:60]])
    assert made(mixed).tolist() == [0] * 50 + positions[:50].tolist() + [0] * len(others[50:60])
    assert made.taken() == len(ids)
    got_ids, got_positions = made.items(0, len(made))
    assert dict(zip(got_ids.tolist(), got_positions.tolist(), strict=True)) == dict(
        zip(ids.tolist(), positions.tolist(), strict=True)
    )


@settings(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.one_of(st.integers(-200, 200), st.integers(-(2**63), 2**63 - 1)), unique=True, max_size=60),
    asked=st.lists(st.one_of(st.integers(-200, 200), st.integers(-(2**63), 2**63 - 1)), max_size=60),
)
def test_it_is_a_dictionary(ids: list[int], asked: list[int]) -> None:
    made = index(len(ids))
    known = {id_: i + 1 for i, id_ in enumerate(ids)}
    made.insert(np.array(ids, np.int64), np.arange(1, len(ids) + 1))
    asked = asked + ids
    assert made(np.array(asked, np.int64)).tolist() == [known.get(id_, 0) for id_ in asked]
    slots = made.slots(np.array(asked, np.int64))
    assert [slot >= 0 for slot in slots] == [id_ in known for id_ in asked]
    made.set(slots[slots >= 0], 7)
    assert made(np.array(ids, np.int64)).tolist() == [7] * len(ids)
