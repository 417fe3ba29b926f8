"""A real Kafka broker on loopback, from the jars that `make test` gets."""

import os
import signal
import socket
import subprocess
import sys
from base64 import urlsafe_b64encode
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

JARS = Path(sys.prefix) / "kafka"


class KafkaServer:
    """A broker in KRaft mode whose log is in `folder`. `start` after `kill` goes on with the same log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with ExitStack() as stack:
            free = [stack.enter_context(socket.socket()) for _ in range(2)]
            for one in free:
                one.bind(("127.0.0.1", 0))
            port, controller = (one.getsockname()[1] for one in free)
        self.servers = f"127.0.0.1:{port}"
        options = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.servers},CONTROLLER://127.0.0.1:{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": folder / "log",
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": 200,
            "auto.create.topics.enable": "false",
            "broker.session.timeout.ms": 1000,  # a broker that was killed may register again after it
            "broker.heartbeat.interval.ms": 200,
        }
        self._properties = folder / "server.properties"
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in options.items()))
        cluster = urlsafe_b64encode(uuid4().bytes).decode().rstrip("=")
        format_log = [*_java("kafka.tools.StorageTool"), "format", "-t", cluster, "-c", str(self._properties)]
        subprocess.run(format_log, check=True, capture_output=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the broker. Clients wait until it answers."""
        with (self._folder / "server.out").open("ab") as out:
            command = [*_java("kafka.Kafka"), str(self._properties)]
            self._process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)

    def kill(self) -> None:
        """End the broker with SIGKILL."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def _java(program: str) -> list[str]:
    return ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{JARS}/*", program]
