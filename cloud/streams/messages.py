"""What the topics of the event log hold, as MessagePack. Arrays are little-endian bytes in row-major order.

Errors::

    ContractError              a record that is no message of its topic (`pocketrank.device.codec.from_msgpack`)
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["ItemChange", "ParameterPart", "ParameterTable", "Sample", "ServedInputs", "ServedPage", "UserChange"]


class ServedInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranker saw of a user and a request: one for all candidates of a page."""

    user_id: int
    scene: int
    """From 0, as the request has it."""
    hour: int
    """0..23 in the run's time zone."""
    history_item: bytes
    """i8 [h] ids of the items of the history, oldest first"""
    history_feedback: bytes
    """f4 [h, F] in the order of `HISTORY_FEEDBACK`, then the run's actions"""
    sequence_item: bytes = b""
    """i8 [q, t] ids of the items of the sequences by behaviour; padding has the smallest int64"""
    sequence_mask: bytes = b""
    """f4 [q, t]"""


class ServedPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page as it was served, with every candidate in cloud order, shown later or not."""

    page_id: str
    session_id: str
    served_ms: int
    """When it was served, in milliseconds since the epoch by the server's clock."""
    experiment: str | None = None
    run: str
    """Name of the served run."""
    sequence: int = 0
    """Sequence number of the parameters that scored it; 0 are those of the run."""
    split_version: str | None = None
    degraded: tuple[str, ...] = ()
    inputs: ServedInputs
    item_id: bytes
    """i8 [n]"""
    channel: bytes = b""
    """u1 [n] channel that found each, as a place in `channels`; 255 = none. Empty where it is not known."""
    channels: tuple[str, ...] = ()
    pxtr: bytes
    """f4 [n, K]; empty where the page was not ranked"""
    score: bytes
    """f4 [n]; empty where the page was not ranked"""
    statistics: bytes = b""
    """f4 [n, S] features of the moment"""
    exploring: bytes = b""
    """u1 [n] whether a candidate has its place by exploration; empty where none has"""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate of a served page whose consumption is over, with the inputs as served.

    The samples of one commit of the join are a batch: they have one `batch`, and `of` is their number.
    """

    batch: int
    of: int
    page_id: str
    item_id: int
    place: int
    """Place on the page, from 0 in cloud order."""
    event_ms: int
    """When the item was first shown, as the log dates it; the time of the page where it was never shown."""
    shown: bool = True
    revision: int = 0
    """0, and one more for each correction of a sample that was issued."""
    labels: dict[str, bool]
    """By the names of a log's label columns and of the app's own actions; unknown ones are absent."""
    before: dict[str, bool] = {}
    """The labels of the former revision; empty for the first."""
    watch_ms: int = 0
    run: str
    sequence: int = 0
    experiment: str | None = None
    inputs: ServedInputs
    pxtr: bytes
    """f4 [K] as served; empty where the page was not ranked"""
    statistics: bytes = b""
    """f4 [S]"""


class ItemChange(msgspec.Struct, frozen=True, kw_only=True):
    """An item that was put, with all its attributes, or removed."""

    item_id: int
    removed: bool = False
    changed_ms: int
    """When the server took it, in milliseconds since the epoch."""
    duration_ms: int = 0
    author_id: int = 0
    """0 = unknown"""
    category: int = 0
    """Code, 0 = unknown."""
    upload_ms: int | None = None
    vector: tuple[float, ...] = ()
    """Content vector; empty = unknown."""
    categories: dict[str, int] = {}
    """Codes of further categories."""
    floats: dict[str, float] = {}
    """Further numbers, in the units of the log."""


class UserChange(msgspec.Struct, frozen=True, kw_only=True):
    """A user that was put, with all attributes, or removed."""

    user_id: int
    removed: bool = False
    changed_ms: int
    categories: dict[str, int] = {}
    floats: dict[str, float] = {}


class ParameterTable(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one published table: n ids, and the bytes of their rows."""

    ids: bytes
    """i8 [n], without repeats"""
    columns: dict[str, bytes]
    """By the names of `Published` (`item_row`, `item_identity`, `user_row`): the rows [n, width] in the dtype of the run."""
    removed: bytes = b""
    """i8 [r] ids whose rows are again those of the run, or none where the run has none"""


class ParameterPart(msgspec.Struct, frozen=True, kw_only=True):
    """Part of what the trainer publishes: increments, each of one part, and now and then a snapshot of all rows that differ
    from the run's, in several."""

    kind: Literal["increment", "snapshot"]
    run: str
    """Digest of the published run whose rows these replace."""
    sequence: int
    """Number of the increment, from 1 without gaps; a snapshot has that of the last one that it contains."""
    part: int = 0
    of: int = 1
    items: ParameterTable | None = None
    users: ParameterTable | None = None
    event_ms: int = 0
    """Date of the newest event that the rows have learned from."""
    published_ms: int
    digest: bytes = b""
    """BLAKE2b-128 of the message without this field; a part with another one is refused"""
