"""The hook of `conftest.py` is on: a wrong shape is refused where plain torch would broadcast it."""

import pytest
import torch
from jaxtyping import TypeCheckError

from pocketrank.cloud.training.ranker import masked_log_loss


def test_shapes_are_checked_at_each_call() -> None:
    assert masked_log_loss(torch.zeros(2, 3), torch.zeros(2, 3)).shape == ()
    with pytest.raises(TypeCheckError):
        masked_log_loss(torch.zeros(2, 3), torch.zeros(1, 3))
