"""A bundle to explain: one whole ONNX graph, of a model with every part that there can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from pocketrank.device.bundle.bundle import Bundle, write_manifest
from pocketrank.device.contract import ModelEntry
from pocketrank.export.graphs import OUTPUT, Graph
from pocketrank.export.onnx import OPSET
from tests.export.small_run import FULL, SPEC, random_upper

GRAPH = Graph("split", SPEC, random_upper(split=True, config=FULL))


@cache
def _converted() -> bytes:
    """Only the whole model, once in a process: an export of all stages takes twice the time."""
    exported = torch.onnx.export(
        GRAPH.traced(), dynamo=True, opset_version=OPSET, input_names=list(GRAPH.names), output_names=[OUTPUT], verbose=False
    )
    assert exported is not None
    return exported.model_proto.SerializeToString()


def explained_bundle(folder: Path, serial: int = 1) -> Bundle:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "split.onnx").write_bytes(_converted())
    model = ModelEntry(form="split", format="onnx", precision="fp32", path="split.onnx", bytes=0)
    write_manifest(folder, name="small", serial=serial, split_version="5" * 16, spec=SPEC, models=[model], created_ms=0)
    return Bundle.open(folder)


@contextmanager
def softmaxes() -> Iterator[list[torch.Tensor]]:
    """What torch's softmax answers meanwhile."""
    answers: list[torch.Tensor] = []
    softmax = torch.softmax

    def noted(*args: Any) -> torch.Tensor:
        answers.append(softmax(*args))
        return answers[-1]

    with patch.object(torch, "softmax", noted):
        yield answers
