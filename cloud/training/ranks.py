"""Processes that train one run together, as `torchrun` starts them: each learns its share of every batch.

Every process reads the log and draws the batches as one process alone does. It computes the gradients of its share of a batch,
and makes the step of the summed gradients, so that all have the same weights, and up to rounding those of one process alone
(without dropout, whose noise differs). The first process alone writes files and reports.

Errors::

    ProcessError               another process of the training ended, or cannot be reached
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

__all__ = [
    "ProcessError",
    "barrier",
    "first_alone",
    "is_first",
    "joined",
    "processes",
    "rank",
    "share_of",
    "sum_array",
    "sum_gradients",
]

_WAIT = timedelta(days=1)
"""How long the others wait while the first process does what it does alone. A process that ends is noticed at once."""


class ProcessError(RuntimeError):
    """Another process of the training ended, or cannot be reached."""


@contextmanager
def joined() -> Iterator[None]:
    """Train with the other processes that `torchrun` started in the block, or alone without it. Raises `ProcessError`."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    with _reporting():
        dist.init_process_group("gloo", timeout=_WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this process writes and reports."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes. Raises `ProcessError`."""
    if processes() > 1:
        with _reporting():
            dist.barrier()


@contextmanager
def first_alone() -> Iterator[None]:
    """Execute the block in the first process, and then in the others. Raises `ProcessError`."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def share_of(length: int) -> tuple[slice, float]:
    """Return the part of a batch that this process learns, and the weight of its loss.

    The weight is 1, or 0 where there are more processes than elements: those without one compute the gradients of another's.
    """
    start, end = (length * at // processes() for at in (rank(), rank() + 1))
    return (slice(start, end), 1.0) if start < end else (slice(0, 1), 0.0)


def sum_array(values: NDArray[Any]) -> NDArray[Any]:
    """Return the sum over all processes. Raises `ProcessError`."""
    if processes() == 1:
        return values
    total = torch.from_numpy(np.array(values))
    with _reporting():
        dist.all_reduce(total)
    return np.asarray(total.numpy())


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of `parameters` by their sums over all processes. Raises `ProcessError`.

    Of gradients that are sparse only the rows are sent.
    """
    if processes() == 1:
        return
    every = list(parameters)
    sparse = [parameter.grad for parameter in every if parameter.grad is not None and parameter.grad.is_sparse]
    dense = [parameter for parameter in every if parameter.grad is None or not parameter.grad.is_sparse]
    # One message for all: whether each has a gradient, and the gradients.
    known = torch.tensor([float(parameter.grad is not None) for parameter in dense])
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in dense]
    message = torch.cat([known, *(gradient.flatten() for gradient in gradients)])
    with _reporting():
        for tensor in (message, *sparse):
            dist.all_reduce(tensor)
    sums = torch.split(message[len(dense) :], [parameter.numel() for parameter in dense])
    for parameter, count, total in zip(dense, message[: len(dense)].tolist(), sums, strict=True):
        parameter.grad = total.view_as(parameter) if count else None


@contextmanager
def _reporting() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        message = f"Expected {os.environ.get('WORLD_SIZE')} processes that train together, got one that ended or is not there"
        raise ProcessError(f"{message} - at rank {os.environ.get('RANK')}. Start all of them again with torchrun.") from error
