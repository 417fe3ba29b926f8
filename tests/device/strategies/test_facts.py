import numpy as np
import pytest

from pocketrank.device.strategies.ads import AdSlots
from pocketrank.device.strategies.facts import Facts
from pocketrank.device.strategies.spacing import MinGap
from tests.device.worlds import make_page


def test_counts_that_are_first_asked_for_late_include_what_was_shown_before() -> None:
    facts, page = Facts(), make_page([1, 2, 3])
    facts.take(page, [1, 2, 3])
    facts.shown("category")  # from here on the column is followed
    facts.show(0)
    first = facts.shown("category")[0]
    assert facts.counts("category")[first] == 1


def test_without_vectors_nothing_is_recent_and_no_number_is_wide() -> None:
    recent = Facts().recent(5)
    assert (recent.shape, recent.dtype) == ((0, 0), np.float32)


def test_a_gap_below_one_is_named() -> None:
    with pytest.raises(ValueError, match="a gap from 1, got 0"):
        MinGap("category", 0)


def test_slots_that_lie_between_others_clash_for_certain() -> None:
    clash = AdSlots(8, 9, 10).clash(AdSlots(5, 6, 10))
    assert clash is not None
    assert clash[0] is True
