"""AUC as others compute it, and rows that cannot be gated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.export.errors import GateError
from pocketrank.export.gate import GATE_FILE, GateRows, auc_by_task, passes, ranking_loss
from pocketrank.export.graphs import Graph
from tests.export.small_run import TASKS, small_run, write_gate


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, np.nan]), st.integers(0, 5)), min_size=1, max_size=40))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[float, int]]) -> None:
    labels, scores = np.float32([[r[0]] for r in rows]), np.float32([[r[1]] for r in rows])
    liked, others = scores[labels == 1], scores[labels == 0]
    found = auc_by_task(labels, scores, ("like",))
    if not len(liked) or not len(others):
        assert found == {}
    else:
        pairs = (liked[:, None] > others).mean() + (liked[:, None] == others).mean() / 2
        assert found["like"] == pytest.approx(pairs)


def test_torch_loses_nothing_and_a_reversed_model_nearly_everything(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    write_gate(run)
    rows, graph = GateRows.read(run), Graph.of(run, "split")
    same = ranking_loss(graph, rows, graph.scores)
    assert same["loss"] == pytest.approx(0, abs=1e-9)
    assert same["order_agreement"] == 1.0
    assert set(same["auc"]) == set(TASKS)
    assert passes(same)
    reversed_scores = ranking_loss(graph, rows, lambda inputs: -graph.scores(inputs))
    assert reversed_scores["loss"] > 0.3
    assert reversed_scores["order_agreement"] < 0.1
    assert not passes(reversed_scores)


def test_a_model_that_loses_no_auc_and_orders_otherwise_does_not_pass(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    write_gate(run)
    rows, graph = GateRows.read(run), Graph.of(run, "split")

    def worst_of_a_list_first(inputs):  # type: ignore[no-untyped-def]
        return graph.scores(inputs) * (1 if inputs["candidate_mask"].shape[1] == rows.inputs["candidate_mask"].shape[1] else -1)

    found = ranking_loss(graph, rows, worst_of_a_list_first)
    assert found["loss"] == pytest.approx(0, abs=1e-9)
    assert found["order_agreement"] < 0.1
    assert not passes(found)


def test_lists_hold_the_shown_items_of_all_rows_once_for_the_user_of_one(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    write_gate(run, rows=35)
    rows = GateRows.read(run)
    lists = list(rows.lists(10))
    assert len(lists) == 3
    shown = [tuple(item) for inputs in lists for item in inputs["candidate_vector"][0].tolist()]
    assert len(set(shown)) == 30
    assert set(shown) <= {tuple(item) for item in rows.inputs["candidate_vector"][:, 0].tolist()}
    for inputs in lists:
        at = np.flatnonzero((rows.inputs["candidate_vector"][:, 0] == inputs["candidate_vector"][0, 0]).all(1))
        np.testing.assert_array_equal(inputs["event_float"], rows.inputs["event_float"][at])
        np.testing.assert_array_equal(inputs["user_vector"], rows.inputs["user_vector"][at])


def _rewrite(path: Path, **changes: np.ndarray | None) -> None:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "Expected an array, got none - at .*`labels`"),
        ({"event_gap": None}, "Expected an array, got none - at .*`event_gap`"),
        ({"labels": np.zeros((4, 3))}, r"Expected \[rows, 2\], got .*`labels`"),
        ({"labels": np.full((200, 2), np.nan)}, "Expected a task with both labels"),
        ({"context": np.zeros((200, 9))}, r"Expected \[200, 2\], got .*`context`"),
        ({"candidate_mask": np.ones((200, 13))}, "at most 12 candidates"),
    ],
)
def test_malformed_rows_are_refused(tmp_path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    run = small_run(tmp_path)
    write_gate(run)
    _rewrite(run.published / GATE_FILE, **changes)
    with pytest.raises(GateError, match=message):
        GateRows.read(run)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    (run.published / GATE_FILE).write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(GateError, match=r"Expected a \.npz archive"):
        GateRows.read(run)
