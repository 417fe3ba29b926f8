"""Adam whose step takes time for the rows that it uses of large tables, and not for all rows.

A row without a gradient still moves in Adam, by its momentum, until that has decayed. This optimizer makes up for such steps
when the row is looked up again, so that the weights are those of Adam (Kingma & Ba 2015, algorithm 1), up to rounding. "Lazy"
variants such as `torch.optim.SparseAdam` leave them out, and learn something else.

With decay rates b1 and b2, a row that was last up to date after step t has after k more steps without a gradient moved by

    -lr m / sqrt(v) * (sum over j = 1..k of r^j g(t + j)),    r = b1 / sqrt(b2),  g(s) = sqrt(1 - b2^s) / (1 - b1^s)

and this sum is S(t) - r^k S(t + k), where S(t) is the infinite one. The epsilon of Adam is that of the first of these steps.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from pocketrank.cloud.models.layers import Embedding

__all__ = ["RowAdam"]

_B1, _B2, _EPSILON = 0.9, 0.999, 1e-8
_R = _B1 / _B2**0.5
_BIASED = 20_000
"""Steps after which the corrections of the bias are 1 in 32-bit floats."""


def _sums() -> Tensor:
    """Return S(0) to S(_BIASED)."""
    step = np.arange(1, _BIASED + 1)
    correction = np.sqrt(1 - _B2**step) / (1 - _B1**step)
    sums = np.full(_BIASED + 1, _R / (1 - _R))
    for t in range(_BIASED - 1, -1, -1):
        sums[t] = _R * (correction[t] + sums[t + 1])
    return torch.from_numpy(sums)


class RowAdam:
    """Adam over a model, whose `Embedding`s of at least `rows_from` rows are updated by row.

    The weights of these are up to date in a forward pass of training mode, and otherwise after `catch_up`.
    """

    def __init__(self, model: nn.Module, learning_rate: float, *, rows_from: int) -> None:
        large = [module for module in model.modules() if isinstance(module, Embedding) and len(module.weight) >= rows_from]
        by_row = {id(table.weight) for table in large}
        dense = [parameter for parameter in model.parameters() if id(parameter) not in by_row]
        self._dense = torch.optim.Adam(dense, learning_rate, (_B1, _B2), _EPSILON, fused=True)
        sums = _sums() if large else torch.empty(0)
        self._tables = [_Table(table, learning_rate, sums) for table in large]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._dense.zero_grad()
        for table in self._tables:
            table.weight.grad = None

    def step(self) -> None:
        """Update the weights by their gradients."""
        self._dense.step()
        for table in self._tables:
            table.update()

    def catch_up(self) -> None:
        """Make the steps up for all rows."""
        for table in self._tables:
            table.catch_up(torch.arange(len(table.weight)))


class _Table:
    """One table and its moments."""

    def __init__(self, embedding: Embedding, learning_rate: float, sums: Tensor) -> None:
        self.weight, self._rate, self._sums, self._step = embedding.weight, learning_rate, sums, 0
        self._moments = torch.zeros(len(self.weight), 2, self.weight.shape[1])  # of each row, side by side in memory
        self._last = torch.zeros(len(self.weight), dtype=torch.int64)  # step up to which a row is up to date
        embedding.sparse = True
        embedding.register_forward_pre_hook(self._before_lookup)

    def _before_lookup(self, module: nn.Module, arguments: tuple[Tensor]) -> None:
        if module.training:
            self.catch_up(torch.unique(arguments[0]))

    @torch.no_grad()
    def catch_up(self, rows: Int[Tensor, " r"]) -> None:
        """Make the steps up for `rows`, which are unique."""
        last = self._last.index_select(0, rows)
        behind = (last < self._step).nonzero()[:, 0]
        if not len(behind):
            return
        rows, last = rows[behind], last[behind]
        skipped = (self._step - last).double()
        moves = self._sums[last.clamp(max=_BIASED)] - _R**skipped * self._sums[min(self._step, _BIASED)]
        unbiased = (1 - _B2 ** (last + 1).double()).sqrt()
        move, epsilon, of_mean, of_square = (
            of_row.float()[:, None] for of_row in (self._rate * moves, _EPSILON * unbiased, _B1**skipped, _B2**skipped)
        )
        mean, square = self._moments.index_select(0, rows).unbind(1)
        self._set(rows, move * mean / (square.sqrt() + epsilon), mean * of_mean, square * of_square)

    @torch.no_grad()
    def update(self) -> None:
        """Make a step for the rows that have a gradient."""
        gradient = self.weight.grad
        if gradient is not None:
            gradient = gradient.coalesce()
            self.catch_up(gradient.indices()[0])  # those of another process were not looked up here
        self._step += 1
        if gradient is None:
            return
        rows, values = gradient.indices()[0], gradient.values()
        mean, square = self._moments.index_select(0, rows).unbind(1)
        mean, square = torch.lerp(mean, values, 1 - _B1), torch.lerp(square, values**2, 1 - _B2)
        denominator = (square / (1 - _B2**self._step)).sqrt() + _EPSILON
        self._set(rows, self._rate / (1 - _B1**self._step) * mean / denominator, mean, square)

    def _set(self, rows: Int[Tensor, " r"], moves: Tensor, mean: Tensor, square: Tensor) -> None:
        self.weight.index_copy_(0, rows, self.weight.index_select(0, rows) - moves)
        self._moments.index_copy_(0, rows, torch.stack([mean, square], 1))
        self._last.index_fill_(0, rows, self._step)
