"""Stages and loops out of graphs of letters: an operation of `ab → c` makes c from a and b."""

from __future__ import annotations

import pytest

from pocketrank.export.cut import Operations

# two stages, a → s and s' b → r, where s' stands for s; and a loop with the state n, from r and the constant k
GRAPH = ["a > s", "tb > r", "r > f", "k > w", "r > m", "nmw > x", "x > y", "y > g", "n > o", "f > h", "q > z"]
STATE, GO = {"n": ("f", "y")}, ("h", "g")


def operations(graph: list[str] = GRAPH, **links: str) -> Operations[str]:
    sides = (line.split(" > ") for line in graph)
    return Operations([(tuple(inputs), tuple(outputs)) for inputs, outputs in sides], links)


def named(places: list[int]) -> list[str]:
    return [GRAPH[i].split(" > ")[1] for i in places]


def test_a_stage_is_what_leads_from_its_inputs_to_its_outputs() -> None:
    assert named(operations(t="s").needed("s", "a")) == ["s"]
    assert named(operations(t="s").needed("r", "tb")) == ["r"]
    assert named(operations(t="s").needed("a", "a")) == []


def test_stages_join_where_what_is_handed_on_is_not_given() -> None:
    assert named(operations(t="s").needed("r", "ab")) == ["s", "r"]


def test_an_order_in_which_they_can_run_is_found_whatever_the_order_given() -> None:
    graph = operations(["c > d", "ab > c", "d > e"])
    assert graph.needed("e", "ab") == [1, 0, 2]


def test_a_loop_repeats_what_its_state_changes_and_what_only_constants_make() -> None:
    loop = operations(t="s").loop(["o", "r"], "ab", STATE, GO)
    assert named(loop.before) == ["s", "r", "f", "h", "m"]
    assert named(loop.body) == ["w", "x", "y", "g"]
    assert named(loop.after) == ["o"]
    assert set(loop.captured) == {"m", "k"}


def test_what_the_body_takes_may_be_an_input() -> None:
    loop = operations(t="s").loop(["o"], "tbm", STATE, GO)
    assert named(loop.before) == ["r", "f", "h"]
    assert set(loop.captured) == {"m", "k"}


@pytest.mark.parametrize("unused", ["z", "q"])
def test_what_nothing_needs_is_left_out(unused: str) -> None:
    loop = operations(t="s").loop(["o"], "ab", STATE, GO)
    assert unused not in named([*loop.before, *loop.body, *loop.after])
