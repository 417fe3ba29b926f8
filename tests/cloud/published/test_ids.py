import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.cloud.published.ids import IdLookup

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(known=st.sets(INT64), asked=st.lists(INT64))
def test_known_ids_are_found_and_all_others_are_at_zero(known: set[int], asked: list[int]) -> None:
    smallest = int(np.iinfo(np.int64).min)
    ids = [smallest, *sorted(known - {smallest})]
    index = IdLookup(np.array(ids, np.int64))
    wanted = asked + ids
    assert index(wanted).tolist() == [ids.index(i) if i in ids else 0 for i in wanted]
    assert len(index) == len(ids)
