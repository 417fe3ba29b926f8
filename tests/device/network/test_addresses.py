"""Names with several addresses, against real sockets: some answer, some refuse, and some say nothing."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from threading import Event
from typing import Any

import pytest

from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import UnreachableError
from tests.device.network.test_client import Cloud, serving

NAME = "pages.example"
SILENT, REFUSING = "127.0.0.2", "127.0.0.3"


@contextmanager
def hole(host: str, port: int) -> Iterator[None]:
    """An address that answers no attempt to connect, because its queue is full. Without IPv6 `::1` refuses at once."""
    with ExitStack() as stack:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = stack.enter_context(socket.socket(family))
            listener.bind((host, port))
            listener.listen(0)
        except OSError:
            assert family == socket.AF_INET6
        else:
            for _ in range(4):
                one = stack.enter_context(closing(socket.socket(family)))
                one.setblocking(False)
                one.connect_ex((host, port))
        yield


def name(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let `NAME` have these addresses, in this order."""
    resolve = socket.getaddrinfo

    def answer(host: str, port: int, *args: Any, **more: Any) -> Any:
        if host != NAME:
            return resolve(host, port, *args, **more)
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in one], socket.SOCK_STREAM, 6, "", (one, port)) for one in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


@pytest.mark.parametrize(
    "hosts",
    [
        ("127.0.0.1",),
        (SILENT, "127.0.0.1"),
        (REFUSING, "127.0.0.1"),
        (SILENT, REFUSING, "127.0.0.1"),
        ("::1", "127.0.0.1"),
        # By turns of families the second is tried after 250 ms. In the order of the list it would be after 2.5 s.
        (*["::1"] * 10, "127.0.0.1"),
    ],
)
def test_a_call_is_answered_by_the_address_that_answers(monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]) -> None:
    with serving(Cloud()) as url, hole(SILENT, port_of(url)), hole("::1", port_of(url)):
        name(monkeypatch, *hosts)
        with CloudClient(f"http://{NAME}:{port_of(url)}", timeout_s=2.0) as client:
            assert client.health() == {"status": "ok"}


def test_many_addresses_that_say_nothing_leave_time_for_the_one_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Cloud()) as url, ExitStack() as stack:
        silent = [f"127.0.0.{place}" for place in range(10, 30)]
        for host in silent:
            stack.enter_context(hole(host, port_of(url)))
        name(monkeypatch, *silent, "127.0.0.1")
        with CloudClient(f"http://{NAME}:{port_of(url)}", timeout_s=2.0) as client:  # 250 ms for each would be 5 s
            assert client.health() == {"status": "ok"}


def test_a_name_server_that_never_answers_for_ipv6_stops_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    over, resolve = Event(), socket.getaddrinfo

    def answer(host: str, port: int, family: int = 0, *args: Any, **more: Any) -> Any:
        if host == NAME and family != socket.AF_INET:
            over.wait()
        return resolve("127.0.0.1" if host == NAME else host, port, family, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    try:
        with serving(Cloud()) as url, CloudClient(f"http://{NAME}:{port_of(url)}", timeout_s=2.0) as client:
            assert client.health() == {"status": "ok"}
    finally:
        over.set()


def test_an_address_that_takes_connections_and_says_nothing_is_tried_last_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(Cloud()) as url, socket.create_server((SILENT, port_of(url))):
        name(monkeypatch, SILENT, "127.0.0.1")
        with CloudClient(f"http://{NAME}:{port_of(url)}", timeout_s=0.5) as client:
            with pytest.raises(UnreachableError, match="timed out"):
                client.health()
            assert client.health() == {"status": "ok"}
            client.close()
            assert client.health() == {"status": "ok"}


def test_addresses_that_say_nothing_share_the_time_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((SILENT, 0)) as listener:
        port = listener.getsockname()[1]
    with hole(SILENT, port):
        name(monkeypatch, *[SILENT] * 3)
        with pytest.raises(UnreachableError, match="no address answered in time"):
            CloudClient(f"http://{NAME}:{port}", timeout_s=0.1).health()


def test_addresses_that_refuse_are_all_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((REFUSING, 0)) as listener:
        port = listener.getsockname()[1]
    name(monkeypatch, *[REFUSING] * 40)  # 250 ms each would not end within the time
    with pytest.raises(UnreachableError, match="refused"):
        CloudClient(f"http://{NAME}:{port}", timeout_s=5.0).health()


def test_a_name_server_that_says_nothing_has_the_time_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    over = Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait())
    try:
        with pytest.raises(UnreachableError, match=f"no address of {NAME} in time"):
            CloudClient(f"http://{NAME}", timeout_s=0.05).health()
    finally:
        over.set()


def test_an_address_of_ipv6_needs_no_port() -> None:
    with pytest.raises(UnreachableError, match=r"refused|Address|route"):  # nobody serves port 80 of this machine
        CloudClient("http://[::1]/nothing", timeout_s=5.0).health()
