"""A line to a server that keeps every byte that a client sends over it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import parse_headers
from io import BytesIO
from typing import NamedTuple
from urllib.parse import urlsplit


class Sent(NamedTuple):
    line: str
    headers: dict[str, str]
    body: bytes


def requests(data: bytes) -> list[Sent]:
    """The HTTP requests that the bytes are; no byte is left over."""
    file, found = BytesIO(data), []
    while line := file.readline():
        headers = dict(parse_headers(file))
        body = file.read(int(headers.get("Content-Length", 0)))
        found.append(Sent(line.decode().strip(), headers, body))
    return found


@contextmanager
def tapped(server: str) -> Iterator[tuple[str, list[bytearray]]]:
    """A URL in front of `server`, and what each connection to it sent, in the order they came."""
    listener, sent, threads = socket.create_server(("127.0.0.1", 0)), list[bytearray](), list[threading.Thread]()
    goal = urlsplit(server)

    def pump(source: socket.socket, to: socket.socket, keep: bytearray | None) -> None:
        while data := source.recv(1 << 16):
            if keep is not None:
                keep += data
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)

    def line(client: socket.socket, kept: bytearray) -> None:
        with client, socket.create_connection((goal.hostname, goal.port)) as inside:
            back = threading.Thread(target=pump, args=(inside, client, None))
            back.start()
            pump(client, inside, kept)
            back.join()

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            sent.append(bytearray())
            threads.append(threading.Thread(target=line, args=(client, sent[-1])))
            threads[-1].start()

    threads.append(threading.Thread(target=accept))
    threads[0].start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", sent
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in threads:
            thread.join()
