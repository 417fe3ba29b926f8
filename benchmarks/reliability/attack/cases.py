"""All cases of attack. A new one is an entry here; no other place names them."""

from __future__ import annotations

from benchmarks.reliability.attack import surroundings as near
from benchmarks.reliability.attack.scene import NO_TOKEN, Case, by_attacker

__all__ = ["CASES"]

_FEW_FILES = ("sh", "-c", 'ulimit -n 256 && exec "$@"', "sh")
_USER, _FLEET, _PUBLISH = "a user's token", "the token of a fleet", "a publish token"

CASES = {
    # No token.
    "endless_heads": Case("sends heads that never end, at most 1 GB", NO_TOKEN, by_attacker("endless_heads")),
    "silence": Case(
        "holds 276 silent connections to a server with 256 files", NO_TOKEN, by_attacker("silence", before=_FEW_FILES), size=276
    ),
    "silence_of_many": Case(
        "holds 276 silent connections from 24 addresses to a server with 256 files",
        NO_TOKEN,
        by_attacker("silence_of_many", before=_FEW_FILES),
        size=276,
    ),
    "unfinished": Case(
        "holds 40 connections of each kind: nothing, half a head, a byte a second, no byte of the body",
        NO_TOKEN,
        by_attacker("unfinished"),
        size=40,
        seconds=23.0,
    ),
    "nonsense": Case("makes 3,000 connections that send nonsense", NO_TOKEN, by_attacker("nonsense"), size=3000),
    # Slow readers.
    "unread_downloads": Case("never reads 40 downloads of 32 MB", _USER, by_attacker("unread_downloads"), size=40),
    "unread_pages": Case("never reads 20 times 30 pages", _FLEET, by_attacker("unread_pages"), size=20),
    # One token within its rate.
    "experiments": Case(
        "sends 30 batches of 9,000 tiny events, each in an experiment of its own", _FLEET, by_attacker("experiments"), size=30
    ),
    "events": Case("sends 29 batches of 9,000 tiny events, each of another user", _FLEET, by_attacker("events"), size=29),
    "events_of_one_user": Case(
        "sends 60 batches of 9,000 tiny events of one user", _USER, by_attacker("events_of_one_user"), size=60
    ),
    "bombs_of_telemetry": Case(
        "sends 1 kB of gzip 100 times: a million empty lists of telemetry", _USER, by_attacker("bombs_of_telemetry"), size=100
    ),
    "bombs_of_excludes": Case(
        "sends 1 kB of gzip 100 times: a million items to exclude", _USER, by_attacker("bombs_of_excludes"), size=100
    ),
    "restart": Case("sends 29 batches of 9,000 tiny events; then the server restarts", _FLEET, near.restart, size=29),
    # Speaking for another.
    "spoofing": Case(
        "sends feedback and asks for pages of another user, by 14 kinds of tokens",
        _USER,
        by_attacker("spoofing", app_tokens=False),
        size=5,
    ),
    "guessed_ids": Case("sends another user's event ids first", _USER, by_attacker("guessed_ids"), size=200),
    "publishing": Case(
        "publishes bundles that no trusted key has signed, and one of the last serial",
        _PUBLISH,
        near.own_run(by_attacker("publishing")),
    ),
    # What the server depends on.
    "hung_stage": Case("asks for 4 pages at which the operator's own stage hangs", _USER, near.hung_stage, size=4),
    "dead_name_server": Case("cuts off the name server, and the store again and again", "the network", near.dead_name_server),
    "silent_qdrant": Case("lets Qdrant accept and say nothing", "the network", near.faulty_qdrant("silent")),
    "refusing_qdrant": Case("lets Qdrant refuse", "the network", near.faulty_qdrant("refusing")),
    "silent_valkey": Case("lets Valkey accept and say nothing", "the network", near.faulty_valkey("silent")),
    "garbage_of_valkey": Case("lets Valkey answer nonsense", "the network", near.faulty_valkey("garbage")),
    "refusing_valkey": Case("lets Valkey refuse", "the network", near.faulty_valkey("refusing")),
    # The process and its files.
    "sighup": Case("sends SIGHUP while devices send feedback", "the terminal", near.sighup),
    "log_moved": Case("moves the feedback log while devices send feedback", "the disk", near.log_moved, seconds=13.0),
}
"""Cases by name, in the order in which they are carried out."""
