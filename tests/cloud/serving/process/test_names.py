import socket
import threading
from typing import Any

import pytest

from pocketrank.cloud.serving.process.names import Lookups, bounded_lookups


class NameServer:
    """A look-up that answers when `answers` is set, counts its calls, and can be told to fail."""

    def __init__(self) -> None:
        self.answers, self.ended = threading.Event(), threading.Event()
        self.answers.set()
        self.asked, self.error = 0, None

    def __call__(self, host: str, *_: Any) -> list[str]:
        self.asked += 1
        self.answers.wait(60)
        self.ended.set()
        if self.error is not None:
            raise self.error
        return [f"{host}#{self.asked}"]


@pytest.fixture
def server() -> NameServer:
    return NameServer()


def test_addresses_are_kept_for_their_time(server: NameServer) -> None:
    lookups = Lookups(server, wait_s=30)
    assert [lookups("a", 1), lookups("a", 1), lookups("b", 1)] == [["a#1"], ["a#1"], ["b#2"]]
    assert server.asked == 2
    stale = Lookups(server, wait_s=30, fresh_s=0)
    assert [stale("a", 1), stale("a", 1)] == [["a#3"], ["a#4"]]


def test_a_dead_name_server_leaves_the_addresses_of_before(server: NameServer) -> None:
    lookups = Lookups(server, wait_s=0.01, fresh_s=0)
    while True:  # the first answer may be late on a busy machine
        try:
            known = lookups("a", 1)
            break
        except socket.gaierror:
            server.ended.wait(30)
    server.answers.clear()
    try:
        asked = server.asked
        assert [lookups("a", 1) for _ in range(20)] == [known] * 20
        assert server.asked <= asked + 1, "one look-up is under way, and nobody else waits"
        with pytest.raises(socket.gaierror, match="no name server answered for b"):
            lookups("b", 1)
    finally:
        server.answers.set()


def test_an_error_of_the_name_server_is_that_of_the_look_up(server: NameServer) -> None:
    server.error = socket.gaierror(socket.EAI_NONAME, "no such name")
    lookups = Lookups(server, wait_s=30)
    for _ in range(2):
        with pytest.raises(socket.gaierror, match="no such name"):
            lookups("a", 1)
    assert server.asked == 2


def test_the_names_that_are_kept_are_bounded(server: NameServer) -> None:
    lookups = Lookups(server, wait_s=30)
    for n in range(300):
        lookups(f"n{n}", 1)
    lookups("n299", 1)
    assert server.asked == 300
    lookups("n0", 1)
    assert server.asked == 301


def test_all_look_ups_of_a_process_are_bounded_within_the_block() -> None:
    before = socket.getaddrinfo
    with bounded_lookups():
        assert isinstance(socket.getaddrinfo, Lookups)
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=30).close()
    assert socket.getaddrinfo is before
