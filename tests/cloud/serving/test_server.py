import socket

import pytest

from cloud.serving.server import PortError, listen


def test_a_free_port_is_had_and_then_no_longer_free() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortError, match=f"Expected a free port to listen on, got 127.0.0.1:{port}"):
            listen("127.0.0.1", port)
        socket.create_connection(first.getsockname(), timeout=10).close()
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("no such host", 0), ("127.0.0.1", 1 << 17), ("", -1)])
def test_an_address_that_is_not_this_machines_is_refused(host: str, port: int) -> None:
    with pytest.raises(PortError, match="Expected"):
        listen(host, port)
