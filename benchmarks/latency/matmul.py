"""The limit: how fast this core multiplies matrices at the moment.

Square fp32 products of several sizes in the two libraries at hand (numpy's OpenBLAS, torch's own). The rate is that of the best
pair of size and library, so that nobody's weak kernel flatters us. Sizes are called in turn with what is measured, and each
size's figure is its median, because a shared machine has fast and slow moments.
"""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
import torch

__all__ = ["SIZES", "MatmulRate"]

SIZES = (256, 384, 512, 768, 1024)
"""From what fits the second-level cache to what does not."""


class MatmulRate:
    """Collects times of products; `step` measures each size once in each library."""

    def __init__(self, sizes: tuple[int, ...] = SIZES) -> None:
        rng = np.random.default_rng(0)
        self._squares = {n: rng.random((n, n), np.float32) for n in sizes}
        self._tensors = {n: torch.from_numpy(a) for n, a in self._squares.items()}
        self._out = {n: np.empty_like(a) for n, a in self._squares.items()}
        self._times: dict[tuple[str, int], list[int]] = defaultdict(list)

    def step(self) -> None:
        """One product of each size in each library."""
        for n, square in self._squares.items():
            start = time.perf_counter_ns()
            np.matmul(square, square, out=self._out[n])
            self._times["numpy", n].append(time.perf_counter_ns() - start)
            tensor, out = self._tensors[n], torch.from_numpy(self._out[n])
            start = time.perf_counter_ns()
            torch.mm(tensor, tensor, out=out)
            self._times["torch", n].append(time.perf_counter_ns() - start)

    def gflop_s(self) -> dict[str, dict[str, float]]:
        """10⁹ operations a second by library and size, from the median time."""
        rates: dict[str, dict[str, float]] = defaultdict(dict)
        for (library, n), times in self._times.items():
            rates[library][str(n)] = 2 * n**3 / float(np.median(times))
        return dict(rates)

    def best(self) -> float:
        """The highest of them: operations per nanosecond."""
        return max(rate for sizes in self.gflop_s().values() for rate in sizes.values())
