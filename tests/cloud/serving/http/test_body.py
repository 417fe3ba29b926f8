import asyncio
import gzip
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from pocketrank.cloud.serving.http.body import BodyReader
from pocketrank.cloud.serving.http.wire import WireError

MOST = 1000


def read(chunks: Sequence[bytes], headers: dict[bytes, bytes] | None = None, *, leaves: bool = False) -> bytes:
    """The body that comes in `chunks`; the client `leaves` instead of ending it, or says nothing more."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": leaves or i < len(chunks) - 1} for i, chunk in enumerate(chunks)
    ]
    if leaves:
        messages.append({"type": "http.disconnect"})

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    return asyncio.run(BodyReader(MOST, 30)(headers or {}, receive))


def refused(*args: Any, **kwargs: Any) -> WireError:
    with pytest.raises(WireError) as caught:
        read(*args, **kwargs)
    return caught.value


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(at)]


@given(st.binary(max_size=MOST), st.lists(st.integers(0, 5000), max_size=4))
def test_a_body_is_what_was_sent_however_it_comes(data: bytes, cuts: list[int]) -> None:
    assert read(split(data, cuts)) == data
    assert read(split(gzip.compress(data), cuts), {b"content-encoding": b"gzip"}) == data
    assert read(split(gzip.compress(data), cuts), {b"content-encoding": b" X-GZip "}) == data
    assert read(split(zlib.compress(data), cuts), {b"content-encoding": b"Deflate"}) == data
    assert read(split(data, cuts), {b"content-encoding": b""}) == data
    assert read(split(gzip.compress(data), cuts), {b"content-encoding": b"identity, gzip,"}) == data
    assert read(split(zlib.compress(data)[2:-4], cuts), {b"content-encoding": b"deflate"}) == data, "without the head of zlib"


@given(st.lists(st.binary(max_size=MOST // 10), min_size=1, max_size=10), st.lists(st.integers(0, 5000), max_size=4))
def test_gzip_may_have_several_members(members: list[bytes], cuts: list[int]) -> None:
    """RFC 1952, 2.2: as `cat a.gz b.gz` and some libraries write it."""
    packed = b"".join(map(gzip.compress, members))
    assert read(split(packed, cuts), {b"content-encoding": b"gzip"}) == b"".join(members)


def test_what_is_too_long_is_refused_before_and_while_it_is_read() -> None:
    assert read([b"x" * MOST]) == b"x" * MOST
    assert refused([], {b"content-length": b"1001"}).status == 413
    assert refused([b"x" * (MOST + 1)]).status == 413
    assert refused([b"x" * 600, b"x" * 600, b"never asked for"]).status == 413


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
def test_a_bomb_never_unfolds(encoding: bytes) -> None:
    pack = gzip.compress if encoding == b"gzip" else zlib.compress
    bomb = pack(bytes(100_000_000))
    assert refused([bomb], {b"content-encoding": encoding}).status == 413
    assert refused(split(bomb, [100, 50_000]), {b"content-encoding": encoding}).status == 413
    assert read([pack(bytes(MOST))], {b"content-encoding": encoding}) == bytes(MOST)
    if encoding == b"gzip":
        assert refused([pack(bytes(MOST - 1)) + pack(b"xx")], {b"content-encoding": encoding}).status == 413


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (b"plain", b"gzip", 400),
        (gzip.compress(b"abc")[:-3], b"gzip", 400),
        (b"", b"gzip", 400),
        (gzip.compress(b"abc") + b"more", b"gzip", 400),
        (gzip.compress(b"") * 101, b"gzip", 400),
        (zlib.compress(b"abc") + b"more", b"deflate", 400),
        (gzip.compress(b"abc"), b"deflate", 400),
        (b"abc", b"br", 415),
        (b"abc", b"gzip, gzip", 415),
    ],
    ids=["plain", "cut", "empty", "more", "many", "more_deflate", "other", "unknown", "twice"],
)
def test_what_is_not_as_it_says_is_refused(body: bytes, encoding: bytes, status: int) -> None:
    assert refused([body], {b"content-encoding": encoding}).status == status


def test_a_client_that_leaves_is_told_apart() -> None:
    with pytest.raises(ClientDisconnect):
        read([b"half"], leaves=True)
    with pytest.raises(ClientDisconnect):
        read([], leaves=True)


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_a_client_that_says_nothing_more_does_not_hold_the_server(parts: int) -> None:
    async def receive() -> dict[str, Any]:
        if len(received) == parts:
            await asyncio.Event().wait()
        received.append(True)
        return {"type": "http.request", "body": b"part", "more_body": True}

    received: list[bool] = []
    with pytest.raises(WireError) as caught:
        asyncio.run(BodyReader(MOST, 0.01)({}, receive))
    assert (caught.value.status, caught.value.headers) == (408, {"Connection": "close"})
