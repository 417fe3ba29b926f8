"""Golden cases of a bundle: inputs, torch's scores and tolerances, which a device checks before it uses the models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pocketrank.cloud.training.run import Run
from pocketrank.device.bundle.files import GOLDEN
from pocketrank.device.codec import to_block, to_msgpack
from pocketrank.device.contract import Form, Golden, GoldenCase, GoldenTolerance, ScoreRange
from pocketrank.export.gate import GATE_FILE, GateRows
from pocketrank.export.graphs import Graph, Inputs
from pocketrank.export.parity import draw_inputs

__all__ = ["write_golden"]

CASES = 3
"""Cases of each form: a full page with a full history, then smaller ones. About 40 kB each."""
DIFF_MIN = 1e-4
"""Smallest tolerance: ten times the difference between runtimes on one machine, since a device's arithmetic differs more."""
DIFF_FACTOR = 2.0
"""Tolerance as a multiple of the difference measured at export, which is larger for reduced precisions."""
RANGE_ROWS = 500
"""Test rows from whose scores the mean and the standard deviation of a task are computed."""


def write_golden(run: Run, folder: Path, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `golden.msgpack` into the bundle in `folder`. `models` is the entry of that name in the report (`bundle`)."""
    graphs = {form: Graph.of(run, form) for form in get_args(Form)}
    rows = GateRows.read(run) if (run.published / GATE_FILE).is_file() else None
    golden = Golden(
        cases=tuple(_case(graph, form, seed) for form, graph in graphs.items() for seed in range(CASES)),
        tolerances=tuple(
            GoldenTolerance(
                form=model["form"],
                format=model["format"],
                precision=model["precision"],
                max_diff=max(DIFF_MIN, DIFF_FACTOR * model["max_abs_diff"]),
            )
            for model in models.values()
        ),
        ranges=() if rows is None else tuple(_range(graph, form, rows) for form, graph in graphs.items()),
    )
    (folder / GOLDEN).write_bytes(to_msgpack(golden))


def _case(graph: Graph, form: Form, seed: int) -> GoldenCase:
    spec = graph.spec
    inputs = draw_inputs(spec, form, -(-spec.candidates_max // (seed + 1)), -(-spec.events_max // (seed + 1)), seed)
    # On a device, events are in order and at whole positions.
    inputs["event_gap"] = -np.sort(-inputs["event_gap"].round(), axis=1)
    scores = graph.scores(inputs)[0]
    blocks = {
        name: to_block(value.reshape(-1, value.shape[-1]), "i4" if name.endswith("category") else "f4")
        for name, value in inputs.items()
        if not name.endswith("mask")
    }
    return GoldenCase(form=form, inputs=blocks, scores=to_block(scores, "f4"))


def _range(graph: Graph, form: Form, rows: GateRows) -> ScoreRange:
    """Return mean and deviation of the scores of shown items, which resemble a device's candidates."""
    some = GateRows(rows.inputs, rows.labels[:RANGE_ROWS])
    scores = some.scores(lambda inputs: graph.scores(_inputs_of(inputs, graph))).astype(np.float64)
    return ScoreRange(form=form, mean=tuple(scores.mean(0).tolist()), std=tuple(scores.std(0).tolist()))


def _inputs_of(inputs: Inputs, graph: Graph) -> Inputs:
    return {name: inputs[name] for name in graph.names}
