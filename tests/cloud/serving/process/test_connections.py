"""Clients that send without end, say nothing or do not read, against a real server with 256 files. All without a token."""

import json
import os
import select
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pocketrank.cloud.serving.process.connections import ConnectionLimits, network_of
from tests.cloud.serving.process.bounded import FILES_MAX
from tests.cloud.serving.process.test_tls import OPENSSL, make_certificate
from tests.cloud.serving.running import Live, started, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

_WAIT_S = 60.0
_GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
_LARGE = 32 << 20


@contextmanager
def serving(folder: Path, *, file: Path | str = "", tls: Path | str = "", **limits: Any) -> Iterator[Live]:
    args = [sys.executable, "-m", "tests.cloud.serving.process.bounded", json.dumps(limits), str(file), str(tls)]
    with started(args, folder / "log") as server:
        yield server


def connected(server: Live, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=_WAIT_S, source_address=(host, 0))


def peak(server: Live) -> int:
    """The most memory that the process has held, in bytes."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def files(server: Live) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def rest(raw: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    got = bytearray()
    try:
        while part := raw.recv(1 << 16):
            got += part
    except ConnectionResetError:
        pass
    return bytes(got)


def answered(raw: socket.socket, body: bytes = b"ok") -> bool:
    """Whether the next answer on a connection ends with `body`."""
    got = b""
    while not got.endswith(b"\r\n\r\n" + body):
        part = raw.recv(4096)
        if not part:
            return False
        got += part
    return True


def flood(raw: socket.socket, begin: bytes, more: bytes) -> int:
    """Send `more` again and again until the connection is closed, and return the number of bytes that were sent."""
    sent = 0
    try:
        raw.sendall(begin)
        while sent < 256 << 20:
            raw.sendall(more)
            sent += len(more)
    except (ConnectionResetError, BrokenPipeError):
        return sent
    raise AssertionError("the connection is open after 256 MB")


def drip(raw: socket.socket, byte: bytes) -> None:
    """Send a byte whenever nothing has come for 10 ms, until the connection is closed."""
    try:
        for _ in range(6000):
            if not select.select([raw], [], [], 0.01)[0]:
                raw.sendall(byte)
            elif not raw.recv(4096):
                return
    except (ConnectionResetError, BrokenPipeError):
        return
    raise AssertionError("the connection is open after a minute")


def alive(server: Live) -> bool:
    with connected(server) as raw:
        raw.sendall(_GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        return rest(raw).endswith(b"ok")


_CHUNKED = b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /", b"a" * 65536),
        (b"GET / HTTP/1.1\r\nX: ", b"a" * 65536),
        (b"GET / HTTP/1.1\r\n", b"a" * 65536),
        (b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 10000),
        (b"GET / HTTP/1.1\r\nX:", b" \t" * 32768),
        (b"", b"\r\n" * 32768),
        (b"GET / HTTP/1.1\r\nX: y\r\n", b" folded\r\n" * 8192),
        (_CHUNKED, b"0" * 65536),
        (_CHUNKED + b"1;", b"a" * 65536),
        (_CHUNKED + b"0\r\n", b"X: y\r\n" * 10000),
        (_CHUNKED + b"0\r\nX: ", b"a" * 65536),
        (b"", _GET * 2000),
    ],
    ids=[
        "url", "header", "name", "headers", "blanks", "empty_lines", "folded", "chunk_size", "chunk_extension", "trailers",
        "trailer", "requests",
    ],
)  # fmt: skip
def test_what_has_no_end_is_closed_and_takes_no_memory(tmp_path: Path, begin: bytes, more: bytes) -> None:
    with serving(tmp_path) as server:
        assert alive(server)
        before = peak(server)
        with connected(server) as raw:
            sent = flood(raw, begin, more)
        # What the kernel takes for a connection that nobody reads any more is a few MB; without limits it would be all of it.
        assert sent < 64 << 20
        assert peak(server) - before < 16 << 20
        assert alive(server)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_head_of_the_largest_size_is_answered_and_a_larger_one_is_not(tmp_path: Path) -> None:
    with serving(tmp_path, head_bytes_max=1000, headers_max=10) as server:

        def status(headers: list[tuple[str, str]], path: str = "/livez") -> int:
            with connected(server) as raw:
                lines = [f"{name}: {value}" for name, value in [*headers, ("Connection", "close")]]
                raw.sendall("\r\n".join([f"GET {path} HTTP/1.1", *lines, "\r\n"]).encode())
                return int(rest(raw).split()[1])

        room = 1000 - len("/livez") - len("Connectionclose")
        assert status([("X", "y" * (room - 1))]) == 200
        assert status([("X", "y" * room)]) == 431
        assert status([("X" * room, "y")]) == 431
        assert status([], "/livez?" + "y" * (room - 1)) == 200
        assert status([], "/livez?" + "y" * room) == 431
        assert status([("X", "y")] * 9) == 200
        assert status([("X", "y")] * 10) == 431
        # The limit is on each head, and not on a connection or a body.
        with connected(server) as raw:
            for _ in range(20):
                raw.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + bytes(5000))
                assert answered(raw, b"5000")
            raw.sendall(_CHUNKED + b"1\r\nx\r\n" * 5000 + b"0\r\nTrailer: dropped\r\n\r\n")
            assert answered(raw, b"5000")


_SILENT: dict[str, bytes] = {
    "nothing": b"",
    "half_a_head": b"GET /livez HTTP/1.1\r\nHost:",
    "empty_lines": b"\r\n\r\n",
    "rest_of_an_answered_body": b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
    "second_head": _GET + b"GET /li",
}


@pytest.mark.parametrize("kind", _SILENT)
@pytest.mark.parametrize("drips", [False, True])
def test_a_head_that_does_not_come_is_closed_in_its_time(tmp_path: Path, kind: str, drips: bool) -> None:
    with serving(tmp_path, head_s=0.3) as server, connected(server) as raw:
        raw.sendall(_SILENT[kind])
        if drips:
            drip(raw, b"\r\n" if kind == "empty_lines" else b"x")
        else:
            rest(raw)  # ends, because the server closes it


def test_an_idle_connection_outlives_those_of_load_balancers_and_ends(tmp_path: Path) -> None:
    assert ConnectionLimits().keep_alive_s > 60
    with serving(tmp_path, head_s=_WAIT_S, keep_alive_s=0.3) as server, connected(server) as raw:
        for _ in range(3):
            raw.sendall(_GET)
            assert answered(raw)
        assert rest(raw) == b""
    with serving(tmp_path, head_s=0.05, keep_alive_s=_WAIT_S) as server, connected(server) as idle:
        idle.sendall(_GET)
        assert answered(idle)
        with connected(server) as raw:
            assert rest(raw) == b""  # the time of a head is over, and is not that of an idle connection
        idle.sendall(_GET)
        assert answered(idle)


def test_downloads_that_nobody_reads_hold_little_and_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(_LARGE))
    with serving(tmp_path, file=tmp_path / "file", unread_s=0.5) as server, ExitStack() as stack:
        with connected(server) as raw:
            raw.sendall(_GET.replace(b"/livez", b"/file").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert len(rest(raw)) > _LARGE  # who reads gets all of it
        before, open_before = peak(server), files(server)
        for close in (b"", b"Connection: close\r\n") * 20:
            raw = stack.enter_context(connected(server))
            raw.sendall(b"GET /file HTTP/1.1\r\nHost: x\r\n" + close + b"\r\n")
        until(lambda: files(server) > open_before + 20, "the downloads")
        until(lambda: files(server) <= open_before, "their end")
        assert peak(server) - before < 64 << 20  # of 1.3 GB
        assert alive(server)
    log = (tmp_path / "log").read_text()
    assert "nothing read for 0.5 s" in log
    assert "Traceback" not in log


_WAITING: dict[str, bytes] = {
    **{kind: _SILENT[kind] for kind in ("nothing", "half_a_head")},
    "idle": _GET,
    "no_body": b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
    "half_a_body": b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
    "unread": b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("kind", _WAITING)
def test_more_silent_connections_than_files_stop_nobody(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_bytes(bytes(_LARGE))
    with serving(tmp_path, file=tmp_path / "file") as server, ExitStack() as stack:
        working = stack.enter_context(connected(server))
        working.sendall(f"GET /when?file={tmp_path}/there HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        until((tmp_path / "there.begun").exists, "a request that is worked on")
        for _ in range(300):
            stack.enter_context(connected(server)).sendall(_WAITING[kind])
        # At first all of them may be worked on, and then the new one is the only silent one.
        until(lambda: alive(server), "an answer")
        assert all(alive(server) for _ in range(10))
        assert files(server) < FILES_MAX
        # Who is worked for is never closed.
        (tmp_path / "there").touch()
        assert answered(working, b"done")
    log = (tmp_path / "log").read_text()
    assert log.count("\n") <= 3
    assert "Traceback" not in log


@pytest.mark.skipif(OPENSSL is None, reason="no openssl here to make a certificate with")
def test_handshakes_that_do_not_come_stop_nobody_and_end(tmp_path: Path) -> None:
    made = make_certificate(tmp_path / "tls")
    context = ssl.create_default_context(cafile=str(made.certfile))

    def alive_in_tls(server: Live) -> bool:
        with connected(server) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as raw:
            raw.sendall(_GET)
            return answered(raw)

    with serving(tmp_path, tls=tmp_path / "tls") as server, ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connected(server)).sendall(b"\x16\x03\x01")
        assert all(alive_in_tls(server) for _ in range(10))
        assert files(server) < FILES_MAX
    with serving(tmp_path, tls=tmp_path / "tls", head_s=0.3) as server, connected(server) as raw:
        assert rest(raw) == b""
        assert alive_in_tls(server)


def test_one_address_does_not_take_the_connections_of_another(tmp_path: Path) -> None:
    with serving(tmp_path, per_address_max=5) as server, ExitStack() as stack:
        other = stack.enter_context(connected(server, "127.0.0.2"))
        other.sendall(_GET)
        assert answered(other)
        silent = [stack.enter_context(connected(server)) for _ in range(20)]
        for one in silent[:15]:
            assert rest(one) == b""
        for one in silent[15:]:
            one.sendall(_GET)
            assert answered(one)
        other.sendall(_GET)
        assert answered(other)


def test_connections_without_a_request_are_closed_before_those_that_wait_for_their_next(tmp_path: Path) -> None:
    for limits in ({"open_max": 6, "per_address_max": 6}, {"per_address_max": 6}):
        with serving(tmp_path, **limits) as server, ExitStack() as stack:
            used = [stack.enter_context(connected(server)) for _ in range(3)]
            for one in used:
                one.sendall(_GET)
                assert answered(one)
            silent = [stack.enter_context(connected(server)) for _ in range(20)]
            for one in silent[:17]:
                assert rest(one) == b""
            for one in used:
                one.sendall(_GET)
                assert answered(one)


def test_connections_that_are_all_worked_for_are_not_closed_for_another(tmp_path: Path) -> None:
    with serving(tmp_path, open_max=4, per_address_max=4) as server, ExitStack() as stack:
        working = [stack.enter_context(connected(server)) for _ in range(4)]
        for number, one in enumerate(working):
            one.sendall(f"GET /when?file={tmp_path}/{number}.there HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            until((tmp_path / f"{number}.begun").exists, "a request that is worked on")
        with connected(server) as raw:
            assert rest(raw) == b""
        for number, one in enumerate(working):
            (tmp_path / f"{number}.there").touch()
            assert answered(one, b"done")
        assert alive(server)  # idle now, so there is room


def test_nonsense_is_refused_and_logged_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for _ in range(200):
            with connected(server) as raw:
                raw.sendall(b"\x16\x03\x01nonsense\r\n\r\n")
                assert rest(raw).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    log = (tmp_path / "log").read_text()
    assert log.count("\n") <= 2
    assert "closed connections: 1 (no HTTP)" in log


def test_requests_that_wait_for_one_another_are_answered_in_their_order(tmp_path: Path) -> None:
    with serving(tmp_path) as server, connected(server) as raw:
        requests = [b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % n + bytes(n) for n in range(30)]
        raw.sendall(b"".join(requests) + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        bodies = [answer.split(b"\r\n\r\n")[1] for answer in rest(raw).split(b"HTTP/1.1 200 OK")[1:]]
        assert bodies == [*(str(n).encode() for n in range(30)), b"ok"]


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0"])
def test_a_request_to_change_the_protocol_is_answered_in_this_one(tmp_path: Path, protocol: str) -> None:
    with serving(tmp_path) as server, connected(server) as raw:
        raw.sendall(f"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\nmore".encode())
        answer = rest(raw)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nok")
    assert (tmp_path / "log").read_text().count("\n") <= 1


def test_a_client_that_leaves_before_its_answers_is_no_error(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        with connected(server) as raw:
            raw.sendall(f"GET /when?file={tmp_path}/there HTTP/1.1\r\nHost: x\r\n\r\n".encode() + _GET * 5)
            until((tmp_path / "there.begun").exists, "a request that is worked on")
        (tmp_path / "there").touch()
        assert alive(server)
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("one", "another", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::1", True),
    ],
)
def test_addresses_of_one_customer_are_one(one: str, another: str, same: bool) -> None:
    assert (network_of(one) == network_of(another)) == same
    assert network_of(one)
    assert network_of("/run/socket") == b""


@pytest.mark.parametrize("wrong", [{"head_s": 0}, {"keep_alive_s": -1}, {"head_bytes_max": 0}, {"open_max": 0}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Expected times > 0 and sizes >= 1"):
        ConnectionLimits(**wrong)
