"""A small simulated world that is learned on."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from pocketrank.cloud.training.run import Run
from pocketrank.cloud.training.train import WORLD_CONFIG, train
from pocketrank.sdk_demo.world import World, WorldConfig

__all__ = ["USERS", "small_run", "world"]

USERS = 150


def world() -> World:
    """Return the world, whose logs are many times its run's."""
    config = WorldConfig.load()
    catalogue = replace(config.catalogue, items=600, authors=80)
    return World(replace(config, users=replace(config.users, count=USERS), catalogue=catalogue))


def small_run(out: Path, seed: int = 0) -> Run:
    """Return a run of 600 items, trained in some 15 seconds."""
    return train(world().simulate_log(seed=seed), out=out, seeds=1, config=WORLD_CONFIG)
