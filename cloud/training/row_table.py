"""Rows that are learned one by one: made at their first use, admitted by count, expired, and updated by AdaGrad or FTRL.

A row is what is added to the row that the run has, so it begins at zero. A slot that was given up is zeroed, and the
optimiser's state with it, before another id gets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowConfig", "RowTable"]

Int = NDArray[np.int64]
Float = NDArray[np.float32]

_SEEN_BYTES = 4
_SEEN_MAX = 1_000_000
"""Ids that are counted before they are admitted; beyond it the oldest are forgotten."""


@dataclass(frozen=True)
class RowConfig:
    """How rows are made, updated and given up."""

    optimizer: Literal["adagrad", "ftrl"] = "adagrad"
    """AdaGrad (Duchi et al., JMLR 2011) or FTRL-proximal (McMahan et al., KDD 2013, algorithm 1)."""
    learning_rate: float = 0.05
    accumulator: float = 0.1
    """What AdaGrad's sum of squares begins with, and FTRL's beta."""
    l1: float = 0.0
    """Of FTRL."""
    l2: float = 0.0
    """Of FTRL."""
    admit: int = 2
    """Times that an id must have been seen before it gets a row."""
    expire_ms: int = 30 * 86_400_000
    """Time without use after which a row is given up, by the dates of the samples."""
    clip: float = 1.0
    """Largest norm of a row's gradient; longer ones are shortened to it."""
    discard: float = 100.0
    """Norm from which on a row's gradient is not used at all, as one that is not finite."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.admit < 1 or not 0 < self.clip <= self.discard or self.accumulator <= 0:
            raise ValueError("Expected learning_rate and accumulator above 0, admit of 1 or more and 0 < clip <= discard")


class RowTable:
    """Rows of one width by id."""

    def __init__(self, width: int, config: RowConfig) -> None:
        self.width, self.config = width, config
        self._slot: dict[int, int] = {}
        self._free = list[int]()
        self._seen: dict[int, int] = {}
        self._states = 2 if config.optimizer == "ftrl" else 1
        self.values = np.zeros((0, width), np.float32)
        self._state = np.zeros((0, self._states, width), np.float32)
        self._used_ms = np.zeros(0, np.int64)
        self.changed: dict[int, None] = {}
        """Ids whose rows changed since `taken` was called, those given up among them."""
        self.unsaved: dict[int, None] = {}
        """Ids whose rows changed since they were saved."""
        self.clipped = self.discarded = self.expired = 0

    def __len__(self) -> int:
        return len(self._slot)

    def __contains__(self, id: int) -> bool:
        return id in self._slot

    @property
    def room(self) -> int:
        """Number of slots, used or not."""
        return len(self.values)

    def use(self, times: Mapping[int, int], now_ms: int) -> Int:
        """Count how often each id was used; return their slots, -1 for those that have no row yet."""
        slots = np.full(len(times), -1, np.int64)
        for i, (id, count) in enumerate(times.items()):
            slot = self._slot.get(id)
            self.unsaved[id] = None
            if slot is None:
                seen = self._seen.get(id, 0) + count
                if seen >= self.config.admit:
                    self._seen.pop(id, None)
                    slot = self._make(id)
                else:
                    self._seen[id] = seen
                    if len(self._seen) > _SEEN_MAX:
                        oldest = next(iter(self._seen))
                        del self._seen[oldest]
                        self.unsaved[oldest] = None
                    continue
            slots[i] = slot
            self._used_ms[slot] = max(now_ms, int(self._used_ms[slot]))
        return slots

    def _make(self, id: int) -> int:
        if not self._free:
            before, more = len(self.values), max(1024, len(self.values) // 2)
            self.values = np.concatenate([self.values, np.zeros((more, self.width), np.float32)])
            self._state = np.concatenate([self._state, np.zeros((more, self._states, self.width), np.float32)])
            self._used_ms = np.concatenate([self._used_ms, np.zeros(more, np.int64)])
            self._free = list(range(before + more - 1, before - 1, -1))
        slot = self._slot[id] = self._free.pop()
        return slot

    def of(self, ids: Sequence[int]) -> Float:
        """Return the rows [n, width] of ids; zeros where there is none."""
        rows = np.zeros((len(ids), self.width), np.float32)
        for i, id in enumerate(ids):
            if (slot := self._slot.get(id)) is not None:
                rows[i] = self.values[slot]
        return rows

    def update(self, ids: Sequence[int], slots: Int, gradient: Float) -> None:
        """Make a step for the rows of distinct `ids` at their `slots` [n], -1 left out, with gradients [n, width]."""
        norm = np.sqrt((gradient.astype(np.float64) ** 2).sum(1))
        good = (slots >= 0) & (norm > 0)
        usable = good & np.isfinite(norm) & (norm < self.config.discard)
        self.discarded += int((good & ~usable).sum()) + int((~np.isfinite(norm) & (slots >= 0)).sum())
        long = usable & (norm > self.config.clip)
        self.clipped += int(long.sum())
        gradient = np.where(long[:, None], gradient * (self.config.clip / np.maximum(norm, 1e-30))[:, None], gradient)
        at, g = slots[usable], gradient[usable].astype(np.float32)
        step = self._ftrl if self.config.optimizer == "ftrl" else self._adagrad
        step(at, g)
        for id in np.asarray(ids, np.int64)[usable].tolist():
            self.changed[id] = self.unsaved[id] = None

    def _adagrad(self, at: Int, g: Float) -> None:
        total = self._state[at, 0] + g * g
        self._state[at, 0] = total
        self.values[at] -= np.float32(self.config.learning_rate) * g / np.sqrt(total + np.float32(self.config.accumulator))

    def _ftrl(self, at: Int, g: Float) -> None:
        c = self.config
        z, n = self._state[at, 0], self._state[at, 1]
        total = n + g * g
        sigma = (np.sqrt(total) - np.sqrt(n)) / np.float32(c.learning_rate)
        z = z + g - sigma * self.values[at]
        self._state[at, 0], self._state[at, 1] = z, total
        rate = (np.float32(c.accumulator) + np.sqrt(total)) / np.float32(c.learning_rate) + np.float32(c.l2)
        self.values[at] = np.where(np.abs(z) <= c.l1, np.float32(0), -(z - np.sign(z) * np.float32(c.l1)) / rate)

    def expire(self, now_ms: int) -> list[int]:
        """Give up rows that were not used for long enough; return their ids."""
        old = [id for id, slot in self._slot.items() if self._used_ms[slot] < now_ms - self.config.expire_ms]
        for id in old:
            self.drop(id)
        self.expired += len(old)
        return old

    def drop(self, id: int) -> None:
        """Give up a row, if there is one."""
        if self._seen.pop(id, None) is not None:
            self.unsaved[id] = None
        slot = self._slot.pop(id, None)
        if slot is not None:
            self.values[slot], self._state[slot], self._used_ms[slot] = 0, 0, 0
            self._free.append(slot)
            self.changed[id] = self.unsaved[id] = None

    def taken(self) -> tuple[list[int], list[int]]:
        """Return the ids whose rows changed since the last call, and those that were given up since."""
        ids = [id for id in self.changed if id in self._slot]
        gone = [id for id in self.changed if id not in self._slot]
        self.changed = {}
        return ids, gone

    def ids(self) -> list[int]:
        """Return the ids of all rows."""
        return list(self._slot)

    def pack(self, id: int) -> bytes | None:
        """Return a row with its state, or how often an id without one was seen; None where neither is known."""
        slot = self._slot.get(id)
        if slot is None:
            return self._seen[id].to_bytes(_SEEN_BYTES, "little") if id in self._seen else None
        return b"".join((self._used_ms[slot].tobytes(), self.values[slot].tobytes(), self._state[slot].tobytes()))

    def unpack(self, id: int, data: bytes) -> None:
        """Put in place what was packed. Raises `ValueError` for a row of another width."""
        if len(data) == _SEEN_BYTES:
            self._seen[id] = int.from_bytes(data, "little")
            return
        if len(data) != 8 + 4 * self.width * (1 + self._states):
            raise ValueError(f"Expected a row of width {self.width} with its state, got {len(data)} bytes")
        slot = self._slot[id] if id in self._slot else self._make(id)
        self._used_ms[slot] = np.frombuffer(data, np.int64, 1)[0]
        rest = np.frombuffer(data, np.float32, offset=8).reshape(1 + self._states, self.width)
        self.values[slot], self._state[slot] = rest[0], rest[1:]

    def copy(self) -> Mapping[int, bytes]:
        """Return all rows, packed."""
        return {id: data for id in self._slot if (data := self.pack(id)) is not None}

    def restore(self, rows: Mapping[int, bytes | None]) -> None:
        """Put ids back to what `pack` returned; what that changes counts as changed."""
        for id, data in rows.items():
            if self.pack(id) != data:
                self.drop(id)
                if data is not None:
                    self.unpack(id, data)
                    self.unsaved[id] = None
                    if id in self._slot:
                        self.changed[id] = None
