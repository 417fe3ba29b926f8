import socket

import pytest

from pocketrank.cloud.serving.process.server import PortError, listen, url_of


def test_a_port_is_taken_once_it_is_listened_on() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortError, match=f"Expected a free port to listen on, got 127.0.0.1:{port}"):
            listen("127.0.0.1", port)
        socket.create_connection(first.getsockname(), timeout=10).close()
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("no such host", 0), ("127.0.0.1", 1 << 17), ("", -1)])
def test_an_invalid_address_is_refused(host: str, port: int) -> None:
    with pytest.raises(PortError, match="Expected"):
        listen(host, port)


@pytest.mark.parametrize(("host", "written"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_the_url_of_a_socket(host: str, written: str) -> None:
    try:
        sock = listen(host, 0)
    except PortError:
        pytest.skip(f"this machine has no {host}")
    with sock:
        port = sock.getsockname()[1]
        assert url_of(sock) == f"http://{written}:{port}"
        assert url_of(sock, tls=True) == f"https://{written}:{port}"
