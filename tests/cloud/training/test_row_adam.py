"""Weights by row are those of Adam over the whole table."""

import torch
from torch import Tensor, nn

from pocketrank.cloud.models.layers import Embedding
from pocketrank.cloud.training.row_adam import RowAdam


class Model(nn.Module):
    """A table with two lookups, and a small one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.small = Embedding(300, 4), Embedding(3, 4)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        values = (self.table(first) + 1) * (self.small(first % 3) + 2) + 3 * self.table(second)
        return values.sin().sum()


def lookups(step: int) -> tuple[Tensor, Tensor]:
    """Few rows of the table; some after many steps."""
    return torch.randint(0, 300 if step % 50 == 0 else 20, (6,)), torch.randint(10, 30, (6,))


def fitted(rows_from: int, steps: int, *, catch_up_every: int = 10**9) -> Model:
    model = Model()
    optimizer = RowAdam(model, 1e-2, rows_from=rows_from)
    torch.manual_seed(1)
    for step in range(steps):
        optimizer.zero_grad()
        model(*lookups(step)).backward()
        optimizer.step()
        if step % catch_up_every == 0:
            optimizer.catch_up()
    optimizer.catch_up()
    return model


def test_weights_are_those_of_adam_for_all_rows() -> None:
    whole, by_row = fitted(10**9, 300), fitted(100, 300)
    assert (whole.table.sparse, by_row.table.sparse, by_row.small.sparse) == (False, True, False)
    assert (whole.table.weight - Model().table.weight).abs().max() > 0.2
    torch.testing.assert_close(by_row.table.weight, whole.table.weight, rtol=0, atol=2e-5)
    torch.testing.assert_close(by_row.small.weight, whole.small.weight, rtol=0, atol=2e-5)


def test_a_row_moves_after_its_last_gradient_by_its_momentum() -> None:
    """Which `SparseAdam` leaves out: this is what the test above would miss if no row rested for long."""
    model = Model()
    optimizer = RowAdam(model, 1e-2, rows_from=100)
    once = torch.full((6,), 250)
    model(once, once).backward()
    optimizer.step()
    after = model.table.weight[250].clone()
    for _ in range(100):
        optimizer.zero_grad()
        model(*(torch.zeros(6, dtype=torch.int64),) * 2).backward()
        optimizer.step()
    assert torch.equal(model.table.weight[250], after)  # not looked up, and so not yet made up for
    optimizer.catch_up()
    assert ((model.table.weight[250] - after).abs() > 0.02).all()


def test_catching_up_in_between_changes_nothing() -> None:
    seldom, often = fitted(100, 200), fitted(100, 200, catch_up_every=7)
    torch.testing.assert_close(often.table.weight, seldom.table.weight, rtol=0, atol=2e-5)
