"""Commands to Valkey servers, pipelined per node, within a deadline.

The connections are those of the client library `valkey`, with its TLS, log-in and protocol. Its own cluster client takes longer
per command than the servers do. The node of each slot is therefore kept here, and a pipeline is one write and one read per
node.

A broken connection is opened again once, and the next call after the restart of a server succeeds. The node of a slot that has
moved is looked up again (MOVED); a command to a slot that is moving is sent to its new node (ASK).

A deadline is a time in seconds on the monotonic clock.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

from valkey import Connection, SSLConnection
from valkey.exceptions import ConnectionError as ValkeyConnectionError
from valkey.exceptions import ExecAbortError, OutOfMemoryError, ReadOnlyError, ResponseError, ValkeyError
from valkey.exceptions import TimeoutError as ValkeyTimeoutError

from pocketrank.cloud.stores.base import StoreError, StoreUnavailableError, StoreWriteError

__all__ = ["SLOTS", "Address", "Command", "Link", "LinkConfig", "Node", "ClientConnection", "open_socket", "pack"]

T = TypeVar("T")

SLOTS = 16384
"""Slots of a cluster."""
_TRIES = 4
"""Attempts at a command: its slot may move more than once before the command arrives."""

_REROUTED = ("MOVED ", "ASK ", "TRYAGAIN ", "CLUSTERDOWN ")
"""Beginnings of errors after which a command is sent again, to the node that the cluster then names."""

_TIMED_OUT = (ValkeyTimeoutError, TimeoutError)
_FAILED = (ValkeyError, OSError)


@runtime_checkable
class ClientConnection(Protocol):
    """Types of the client library's connections, which have none."""

    _sock: socket.socket | None

    def connect(self) -> None:
        """Connect and log in."""

    def disconnect(self) -> None:
        """Close."""

    def read_response(self, disable_decoding: bool = False, *, disconnect_on_error: bool = True) -> Any:
        """Return the next reply; raise it if it is an error."""


class Address(NamedTuple):
    """Address of a server."""

    host: str
    port: int


@dataclass(frozen=True)
class LinkConfig:
    """Addresses of the servers, and credentials."""

    addresses: tuple[Address, ...]
    """Address of the server, or of some nodes of the cluster."""
    cluster: bool = False
    """Whether the servers are a cluster."""
    db: int = 0
    """Number of the database; a cluster has only 0."""
    username: str | None = None
    """User to log in as."""
    password: str | None = None
    """Password to log in with."""
    tls: bool = False
    """Whether to speak TLS; the server's certificate and name are checked against the system's authorities."""

    @property
    def where(self) -> str:
        """URL of the servers, without secrets, as errors name it."""
        scheme = ("valkeys" if self.tls else "valkey") + ("-cluster" if self.cluster else "")
        return f"{scheme}://{','.join(f'{a.host}:{a.port}' for a in self.addresses)}" + ("" if self.cluster else f"/{self.db}")


class Command(NamedTuple):
    """Packed command, and the slot of its key."""

    slot: int
    packed: bytes


def pack(*parts: bytes | str | int) -> bytes:
    """Return a command in the bytes of the protocol."""
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        out.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(out)


class Node:
    """Server with its idle connections."""

    def __init__(self, address: Address, config: LinkConfig) -> None:
        self.address = address
        self._config = config
        self._idle: deque[ClientConnection] = deque()
        self._pid = os.getpid()

    def take(self, deadline: float) -> tuple[ClientConnection, bool]:
        """Return a connection, and whether it was used before; a used one may have broken since."""
        if self._pid != os.getpid():  # a fork must not use the connections of its parent
            self._idle, self._pid = deque(), os.getpid()
        try:
            return self._idle.pop(), True
        except IndexError:
            return self._connect(deadline), False

    def give(self, connection: ClientConnection) -> None:
        """Return a connection to the idle ones; nothing may be left to read on it."""
        self._idle.append(connection)

    def _connect(self, deadline: float) -> ClientConnection:
        config, left = self._config, _left(deadline)
        options: dict[str, Any] = {"host": self.address.host, "port": self.address.port, "db": config.db}
        options |= {"username": config.username, "password": config.password, "lib_name": None, "lib_version": None}
        options |= {"socket_timeout": left, "socket_connect_timeout": left}
        kind: Any = partial(SSLConnection, ssl_check_hostname=True) if config.tls else Connection
        connection: ClientConnection = kind(**options)
        connection.connect()
        return connection

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().disconnect()


def _left(deadline: float) -> float:
    """Return the seconds left until the deadline. Raises the library's time-out when none are left."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise ValkeyTimeoutError("the deadline has passed")
    return left


def open_socket(connection: ClientConnection, deadline: float) -> socket.socket:
    """Return the connection's socket, with a time-out at the deadline. Raises the library's errors."""
    sock = connection._sock  # the library has no public name for it
    if sock is None:
        raise ValkeyConnectionError("the connection is closed")
    sock.settimeout(_left(deadline))
    return sock


class Link:
    """Connections to the servers, by slot. It is thread-safe, and connects with the first command."""

    def __init__(self, config: LinkConfig) -> None:
        self.config, self.where = config, config.where
        self._nodes: dict[Address, Node] = {a: Node(a, config) for a in config.addresses}
        self._of_slot: list[Node] | None = None if config.cluster else [self._nodes[config.addresses[0]]] * SLOTS
        self._last_seed: tuple[Address, ...] = ()  # the node that last answered with the slots
        self._lock = Lock()
        self.layout = 0
        """Number of the layout of slots; it is raised when slots may have other nodes than before."""

    def nodes(self, deadline: float) -> list[Node]:
        """Return the node of each slot. Raises `StoreUnavailableError`."""
        return self._of_slot or self._discover(deadline)

    def forget(self) -> None:
        """Let the next command look up the slots again."""
        if self.config.cluster:
            self._of_slot = None

    def _discover(self, deadline: float) -> list[Node]:
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise StoreUnavailableError(self.where, "an answer of the cluster", "none in time")
        try:
            if self._of_slot is not None:
                return self._of_slot
            failed: BaseException | None = None
            addresses = list(dict.fromkeys([*self._last_seed, *self._nodes, *self.config.addresses]))
            for i, address in enumerate(addresses):
                # An equal share of the time for each: a node that hangs must leave some for the others.
                share = time.monotonic() + (deadline - time.monotonic()) / (len(addresses) - i)
                try:
                    ranges = self.exchange(self._node(address), [pack("CLUSTER", "SLOTS")], share)[0]
                except StoreUnavailableError as error:
                    failed, self._last_seed = error, ()
                    continue
                if isinstance(ranges, ResponseError):
                    raise StoreError(self.where, "a cluster", str(ranges))
                of_slot: list[Node | None] = [None] * SLOTS
                for first, last, primary, *_ in ranges:
                    host = primary[0].decode() if primary[0] else address.host
                    of_slot[first : last + 1] = [self._node(Address(host, primary[1]))] * (last - first + 1)
                if None in of_slot:
                    failed = StoreUnavailableError(self.where, "every slot on a node", f"none for {of_slot.index(None)}")
                    continue
                self._of_slot, self._last_seed = cast(list[Node], of_slot), (address,)
                self.layout += 1
                return self._of_slot
            raise StoreUnavailableError(self.where, "an answer of the cluster", str(failed)) from failed
        finally:
            self._lock.release()

    def _node(self, address: Address) -> Node:
        return self._nodes.setdefault(address, Node(address, self.config))

    def with_connections(self, nodes: Sequence[Node], deadline: float, use: Callable[[list[ClientConnection]], T]) -> T:
        """Return `use` of one connection of each node.

        If an idle connection has broken since its last use, `use` is called once more, with new connections. Raises
        `StoreUnavailableError`; the connections are then closed.
        """
        while True:
            held: list[tuple[ClientConnection, bool]] = []
            try:
                for node in nodes:
                    held.append(node.take(deadline))
            except _FAILED as error:
                for node, (connection, _) in zip(nodes, held, strict=False):
                    node.give(connection)
                raise self._lost(error) from error
            try:
                result = use([connection for connection, _ in held])
            except BaseException as error:
                for connection, _ in held:
                    connection.disconnect()
                if not isinstance(error, _FAILED):
                    raise
                if isinstance(error, _TIMED_OUT) or not any(used for _, used in held):
                    raise self._lost(error) from error
                for node in nodes:
                    node.close()
                continue
            for node, (connection, _) in zip(nodes, held, strict=True):
                node.give(connection)
            return result

    def _lost(self, error: Exception) -> StoreUnavailableError:
        self.forget()
        return StoreUnavailableError(self.where, "an answer", "none in time" if isinstance(error, _TIMED_OUT) else str(error))

    def exchange(self, node: Node, packed: Sequence[bytes], deadline: float) -> list[Any]:
        """Return the replies of one node; error replies are among them. Raises `StoreUnavailableError`."""

        def use(connections: list[ClientConnection]) -> list[Any]:
            open_socket(connections[0], deadline).sendall(b"".join(packed))
            return [_reply(connections[0], deadline) for _ in packed]

        return self.with_connections([node], deadline, use)

    def run(self, commands: Sequence[Command], deadline: float) -> list[Any]:
        """Return the replies of commands, in their order. Commands to one node are also executed in their order.

        All commands are sent before a reply is read, and a command may be sent again. Raises `StoreUnavailableError`,
        `StoreWriteError` for a server without memory, and `StoreError` for any other error reply.
        """
        replies: list[Any] = [None] * len(commands)
        waiting = list(range(len(commands)))
        for _ in range(_TRIES):
            of_slot = self.nodes(deadline)
            by_node: dict[Node, list[int]] = {}
            for i in waiting:
                by_node.setdefault(of_slot[commands[i].slot], []).append(i)
            self._send(by_node, commands, replies, deadline)
            waiting = [i for i in waiting if _is_rerouted(replies[i])]
            if not waiting:
                for reply in replies:
                    if isinstance(reply, ResponseError):
                        kind = StoreWriteError if isinstance(reply, OutOfMemoryError) else StoreError
                        raise kind(self.where, "a reply", str(reply))
                return replies
            self._send_to_new_node(waiting, commands, replies, deadline)
            waiting = [i for i in waiting if _is_rerouted(replies[i])]
            self.forget()
        raise StoreUnavailableError(self.where, "a node that has the slot", str(replies[waiting[0]]) if waiting else "none")

    def _send(self, by_node: dict[Node, list[int]], commands: Sequence[Command], replies: list[Any], deadline: float) -> None:
        def use(connections: list[ClientConnection]) -> None:
            for connection, mine in zip(connections, by_node.values(), strict=True):
                open_socket(connection, deadline).sendall(b"".join([commands[i].packed for i in mine]))
            for connection, mine in zip(connections, by_node.values(), strict=True):
                for i in mine:
                    replies[i] = _reply(connection, deadline)

        self.with_connections(list(by_node), deadline, use)

    def _send_to_new_node(self, waiting: list[int], commands: Sequence[Command], replies: list[Any], deadline: float) -> None:
        """Send the commands whose slot is moving to the slot's new node."""
        for i in waiting:
            if str(replies[i]).startswith("ASK "):
                host, _, port = str(replies[i]).split()[2].rpartition(":")
                node = self._node(Address(host, int(port)))
                replies[i] = self.exchange(node, [pack("ASKING"), commands[i].packed], deadline)[1]

    def close(self) -> None:
        """Close all idle connections."""
        for node in list(self._nodes.values()):
            node.close()


def _is_rerouted(reply: object) -> bool:
    if isinstance(reply, (ReadOnlyError, ExecAbortError)):  # the node is no primary any more
        return True
    return isinstance(reply, ResponseError) and str(reply).startswith(_REROUTED)


def _reply(connection: ClientConnection, deadline: float) -> Any:
    open_socket(connection, deadline)
    try:
        return connection.read_response(disable_decoding=True, disconnect_on_error=False)
    except ResponseError as error:
        return error
