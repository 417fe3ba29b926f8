"""Attacks on what a server depends on: its stores and indexes, its names, an operator's stage, its log, its process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from time import sleep
from typing import Any

import msgspec

from benchmarks.errors import BenchmarkError
from benchmarks.reliability.attack.proxy import Fault, FaultyProxy, faulty_proxy
from benchmarks.reliability.attack.scene import Around, Attack, Scene, Setting
from benchmarks.reliability.attack.stand_ins import name_server, qdrant
from benchmarks.reliability.attack.wire import Client, Tally, post
from benchmarks.reliability.attack.world import World
from benchmarks.reliability.cloud_kills import read_log
from pocketrank.cloud.published.published import Published
from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import PageRequest
from tests.valkey import valkey_server

__all__ = ["dead_name_server", "faulty_qdrant", "faulty_valkey", "hung_stage", "log_moved", "own_run", "restart", "sighup"]

_HUNG_SCENE = 77
_HUNG_EVERY_S = 1.0
_STAGE = f"""
import time
from pocketrank.cloud.pipeline import Stage

class Hangs(Stage):
    def __call__(self, query, candidates):
        if query.request.scene == {_HUNG_SCENE}:
            time.sleep(3600)
        return candidates
"""
_STAGES = """
[[stage]]
use = "retrieve"
[[stage]]
use = "rank"
[[stage]]
use = "fuse"
formula = "{formula}"
[[stage]]
use = "hangs.Hangs"
[[stage]]
use = "spread"
"""
_NAME = "store.pocketrank.test"
_MOUNT = 'mount --bind "$1" /etc/resolv.conf && mount --bind "$2" /etc/nsswitch.conf && shift 2 && exec "$@"'
_CUT_EVERY_S = 0.25
_HANGUP_S, _HANGUP_WAIT_S = 2.0, 12.0
_LOOK_S = 0.25


def faulty_valkey(fault: Fault) -> Around:
    """Let the server's Valkey fail."""

    @contextmanager
    def around(world: World, work: Path) -> Iterator[Setting]:
        with valkey_server() as valkey, faulty_proxy(valkey.port) as proxy:
            yield Setting(_failing(proxy, fault), _pipeline(work, f'[store]\nurl = "valkey://127.0.0.1:{proxy.port}/0"\n'))

    return around


def faulty_qdrant(fault: Fault) -> Around:
    """Let the server's Qdrant fail: a stand-in, because there is no Qdrant for tests."""

    @contextmanager
    def around(world: World, work: Path) -> Iterator[Setting]:
        published, _ = Published.open(world.run.published)
        with qdrant(len(published.item_id) - 1, published.item_vector.shape[1]) as port, faulty_proxy(port) as proxy:
            index = f'[index.items]\nkind = "qdrant"\nurl = "http://127.0.0.1:{proxy.port}"\n'
            yield Setting(_failing(proxy, fault), _pipeline(work, index))

    return around


@contextmanager
def dead_name_server(world: World, work: Path) -> Iterator[Setting]:
    """Let the name server fall silent, and cut the connections to the store, so that its name is looked up again and again."""
    with name_server() as names, valkey_server() as valkey, faulty_proxy(valkey.port) as proxy:
        resolver, switch = work / "resolv.conf", work / "nsswitch.conf"
        resolver.write_text(f"nameserver {names.address}\n")
        switch.write_text("hosts: files dns\n")
        before = ("unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", str(resolver), str(switch))
        if shutil.which("unshare") is None or subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
            raise BenchmarkError("dead_name_server", "a mount namespace for a name server of its own", "none on this machine")

        def attack(scene: Scene) -> dict[str, Any]:
            names.is_dead = True
            cuts, until = 0, scene.now() + scene.seconds
            while scene.now() < until:
                proxy.fail("cut")
                cuts += 1
                sleep(_CUT_EVERY_S)
            names.is_dead = False
            proxy.fail("")
            return {"cuts": cuts, "look_ups": names.asked}

        yield Setting(attack, _pipeline(work, f'[store]\nurl = "valkey://{_NAME}:{proxy.port}/0"\n'), before)


@contextmanager
def hung_stage(world: World, work: Path) -> Iterator[Setting]:
    """Let a stage of the operator's own hang for pages of one scene, which a user asks for `size` times."""
    (work / "hangs.py").write_text(_STAGE)

    def attack(scene: Scene) -> dict[str, Any]:
        tally, secrets = Tally(), scene.world.secrets
        client = Client(scene.server.port, tally, patience_s=_HUNG_EVERY_S)
        until = scene.now() + scene.seconds
        for number in range(scene.size):
            request = PageRequest(
                request_id=f"hang-{number}",
                user_id=secrets.users[0],
                session_id="s",
                now_ms=0,
                size=5,
                scene=_HUNG_SCENE,
            )
            began = scene.now()
            status, _ = client(post("/v1/page", to_msgpack(request), secrets.user))
            tally.add(pages=int(status == 200))
            sleep(max(0.0, began + _HUNG_EVERY_S - scene.now()))
        sleep(max(0.0, until - scene.now()))
        client.close()
        return tally.report()

    formula = " + ".join(f"{weight!r} * {task}" for task, weight in world.run.spec.task_weights.items())
    yield Setting(attack, (*_pipeline(work, _STAGES.format(formula=formula)), "--workers", "2"))


@contextmanager
def sighup(world: World, work: Path) -> Iterator[Setting]:
    """Send SIGHUP while devices send feedback, and start the server again if that ended it."""

    def attack(scene: Scene) -> dict[str, Any]:
        scene.attacker.send(scene.order("steady_feedback"))
        sleep(_HANGUP_S)
        since = scene.now()
        code = scene.server.signal(signal.SIGHUP, _HANGUP_WAIT_S)
        ended_s = scene.now() - since
        if code is not None:
            scene.server.start()
            since = scene.now()
        return scene.done() | {"since": since, "ended_with": code, "ended_s": ended_s}

    yield Setting(attack, after=_lost)


@contextmanager
def restart(world: World, work: Path) -> Iterator[Setting]:
    """Send `size` batches of events, each of a user of its own, and restart the server, which replays them."""

    def attack(scene: Scene) -> dict[str, Any]:
        scene.attacker.send(scene.order("events"))
        done = scene.done()
        code = scene.server.end()
        ready_s = scene.server.start()
        return done | {"since": scene.now(), "ready_s": ready_s, "ended_with": code}

    yield Setting(attack)


@contextmanager
def log_moved(world: World, work: Path) -> Iterator[Setting]:
    """Move the feedback log while devices send feedback, and move it back in the end."""
    away = work / "away"

    def attack(scene: Scene) -> dict[str, Any]:
        tally, until = Tally(), scene.now() + scene.seconds
        client = Client(scene.server.port, tally, patience_s=5.0)
        look = b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        away.mkdir()
        scene.attacker.send(scene.order("steady_feedback"))
        sleep(_HANGUP_S)
        moved_at, noticed_s = scene.now(), None
        for file in _files(scene.log):
            os.replace(file, away / file.name)
        while scene.now() < until:
            status, body = client(look)
            if noticed_s is None and (status != 200 or b"failed" in body):
                noticed_s = scene.now() - moved_at
            sleep(_LOOK_S)
        done = scene.done()
        made_anew = scene.log.exists()
        if not made_anew:
            for file in _files(away / scene.log.name):
                os.replace(file, scene.log.with_name(file.name))
        client.close()
        return done | {"noticed_s": noticed_s, "log_made_anew": made_anew}

    yield Setting(attack, after=lambda scene: _lost(scene, away / scene.log.name))


def own_run(around: Around) -> Around:
    """Give a case a copy of the run, because it publishes bundles that are kept there."""

    @contextmanager
    def with_run(world: World, work: Path) -> Iterator[Setting]:
        copytree(world.run.folder, work / "run")
        with around(world, work) as setting:
            setting.run = work / "run"
            yield setting

    return with_run


def _failing(proxy: FaultyProxy, fault: Fault) -> Attack:
    def attack(scene: Scene) -> dict[str, Any]:
        proxy.fail(fault)
        sleep(scene.seconds)
        proxy.fail("")
        return {}

    return attack


def _pipeline(work: Path, text: str) -> tuple[str, ...]:
    file = work / "pipeline.toml"
    file.write_text(text)
    return "--pipeline", str(file)


def _files(log: Path) -> list[Path]:
    return [file for end in ("", "-wal", "-shm") if (file := log.with_name(log.name + end)).exists()]


def _lost(scene: Scene, *more: Path) -> dict[str, Any]:
    """Count the acknowledged events that no log has."""
    acknowledged = set(msgspec.msgpack.decode((scene.work / "result.msgpack").read_bytes(), type=list[str]))
    for log in (scene.log, *more):
        if log.exists():
            acknowledged -= set(read_log(log))
    return {"events_lost": len(acknowledged)}
