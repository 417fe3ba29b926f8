"""The limit: how fast this core multiplies matrices at the moment.

Square fp32 products of several sizes in the two libraries at hand (numpy's OpenBLAS, torch's own). The rate is that of the best
pair of size and library, so that nobody's weak kernel flatters us. Sizes are called in turn with what is measured, and each
size's figure is its median, because a shared machine has fast and slow moments.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import numpy as np
import torch

from benchmarks.latency.timed import Timed

__all__ = ["SIZES", "MatmulRate"]

SIZES = (256, 384, 512, 768, 1024)
"""From what fits the second-level cache to what does not."""


class MatmulRate:
    """Collects times of products; `step` measures each size once in each library."""

    def __init__(self, sizes: tuple[int, ...] = SIZES) -> None:
        rng = np.random.default_rng(0)
        self._products: dict[tuple[str, int], Timed] = {}
        for n in sizes:
            square, out = rng.random((n, n), np.float32), np.empty((n, n), np.float32)
            tensor, to = torch.from_numpy(square), torch.from_numpy(out)
            self._products["numpy", n] = Timed(partial(np.matmul, square, square, out=out))
            self._products["torch", n] = Timed(partial(torch.mm, tensor, tensor, out=to))

    def step(self) -> None:
        """One product of each size in each library."""
        for product in self._products.values():
            product.step()

    def gflop_s(self) -> dict[str, dict[str, float]]:
        """10⁹ operations a second by library and size, from the median time."""
        rates: dict[str, dict[str, float]] = defaultdict(dict)
        for (library, n), product in self._products.items():
            rates[library][str(n)] = 2 * n**3 / float(np.median(product.ns))
        return dict(rates)

    def best(self) -> float:
        """The highest of them: operations per nanosecond."""
        return max(rate for sizes in self.gflop_s().values() for rate in sizes.values())
