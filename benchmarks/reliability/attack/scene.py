"""The scene of an attack: the world, the server that is attacked, and the processes of attackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import msgspec

from benchmarks.processes import OrderedProcess
from benchmarks.reliability.attack.served import Served
from benchmarks.reliability.attack.wire import AttackOrder
from benchmarks.reliability.attack.world import World

__all__ = ["NO_TOKEN", "Around", "Attack", "Case", "Scene", "Setting", "by_attacker"]

NO_TOKEN = "no token"
"""Value of `Case.holds` for an attacker without a token."""


@dataclass
class Scene:
    """A server under attack."""

    world: World
    work: Path
    """Folder of this case."""
    server: Served
    attacker: OrderedProcess
    """An attacker's process. It has addresses of its own."""
    seconds: float
    """How long the attack lasts."""
    size: int
    """How large it is."""
    began: float = field(default_factory=monotonic)
    """When the load of honest devices began."""

    @property
    def log(self) -> Path:
        """The server's feedback log."""
        return self.work / "feedback.db"

    def now(self) -> float:
        """Return the seconds since the load began."""
        return monotonic() - self.began

    def order(self, attack: str, size: int | None = None) -> AttackOrder:
        """Return the order of an attack on this server."""
        return AttackOrder(
            attack=attack,
            port=self.server.port,
            seconds=self.seconds,
            secrets=self.world.secrets,
            size=self.size if size is None else size,
            result=str(self.work / "result.msgpack"),
        )

    def done(self) -> dict[str, Any]:
        """Wait for the end of the attack that was ordered, and return what was done."""
        return msgspec.json.decode(self.attacker.read_line(), type=dict[str, Any])


Attack = Callable[[Scene], dict[str, Any]]
"""Attacks until `Scene.seconds` are over and returns what was done. `since` in it is the second from which pages and probes
count, where the attack ends the server for a while."""


@dataclass
class Setting:
    """How the server of a case is started, attacked and looked at."""

    attack: Attack
    options: tuple[str, ...] = ()
    """Options of `pocketrank serve` in addition to those of the world."""
    before: tuple[str, ...] = ()
    """A command that runs the server's."""
    after: Callable[[Scene], dict[str, Any]] = lambda scene: {}
    """Returns more figures once the server has ended."""
    run: Path | None = None
    """A run of its own."""
    app_tokens: bool = True
    """Whether the token of a fleet is accepted beside those of users."""


Around = Callable[[World, Path], AbstractContextManager[Setting]]
"""Prepares what a case needs beside the server, in a folder of its own."""


class Case(NamedTuple):
    """A bounded, repeatable attack."""

    does: str
    """Action of the attacker, as a phrase that follows `it`."""
    holds: str
    """Possession of the attacker: no token, a token, or a part of the server's surroundings."""
    around: Around
    size: int = 0
    """How large the attack is; `does` says what is counted."""
    seconds: float = 5.0
    """How long it lasts."""


def by_attacker(attack: str, **setting: Any) -> Around:
    """Return the preparation of an attack that an attacker's process makes, with no more than a port and its tokens."""

    def make(scene: Scene) -> dict[str, Any]:
        scene.attacker.send(scene.order(attack))
        return scene.done()

    @contextmanager
    def around(world: World, work: Path) -> Iterator[Setting]:
        yield Setting(make, **setting)

    return around
