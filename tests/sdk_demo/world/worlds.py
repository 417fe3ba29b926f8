"""A small world that shares everything but its size with the default one."""

from __future__ import annotations

import msgspec

from pocketrank.sdk_demo.world import WorldConfig


def small(users: int = 150, items: int = 800) -> WorldConfig:
    config = WorldConfig.load()
    replace = msgspec.structs.replace
    return replace(
        config, users=replace(config.users, count=users), catalogue=replace(config.catalogue, items=items, authors=items // 6)
    )
