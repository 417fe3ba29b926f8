"""Opening of a store by its URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pocketrank.cloud.stores.base import EmbeddingStore, StoreConfigError
from pocketrank.cloud.stores.mapped import MappedStore
from pocketrank.cloud.stores.memory import MemoryStore

__all__ = ["open_store"]

_PORT = 6379
_FORMS = "memory:, mmap:FOLDER, valkey://HOST:PORT/DB or valkey-cluster://HOST:PORT,HOST:PORT"


def open_store(url: str) -> EmbeddingStore:
    """Return the store that `url` names, without a connection to a server yet.

    Raises `StoreConfigError`, whose message does not contain the password.

    ::

        memory:                                      the memory of this process
        mmap:FOLDER                                  files that one process writes and any number read
        valkey://[[USER]:PASSWORD@]HOST[:PORT][/DB]  a Valkey server
        valkey-cluster://[[USER]:PASSWORD@]HOST[:PORT],HOST[:PORT],…   a Valkey cluster, by some of its nodes
        valkeys://…, valkeys-cluster://…             the same over TLS
    """
    scheme, _, rest = url.partition(":")
    if url == "memory:":
        return MemoryStore()
    if scheme == "mmap" and rest:
        return MappedStore(Path(rest))
    if scheme in ("valkey", "valkeys", "valkey-cluster", "valkeys-cluster") and rest.startswith("//"):
        return _valkey(scheme, rest)
    raise StoreConfigError("the store's URL", _FORMS, repr(scheme) if rest else repr(url[:100]))


def _valkey(scheme: str, rest: str) -> EmbeddingStore:
    # Imported here, so that the other stores do not need the client library.
    from pocketrank.cloud.stores.valkey import ValkeyStore
    from pocketrank.cloud.stores.valkey_link import Address, LinkConfig

    cluster = scheme.endswith("-cluster")
    netloc, _, path = rest[2:].partition("/")
    login, _, hosts = netloc.rpartition("@")
    user, _, password = login.partition(":")
    try:
        parts = [urlsplit(f"//{host}") for host in hosts.split(",")]
        if not cluster and len(parts) != 1:
            raise ValueError("several servers")
        if cluster and path:
            raise ValueError("a database of a cluster")
        addresses = tuple(Address(part.hostname or "", part.port or _PORT) for part in parts)
        if not all(address.host for address in addresses):
            raise ValueError("no host")
        db = int(path or 0)
        if db < 0:
            raise ValueError(f"database {db}")
    except ValueError as error:
        got = str(error) if not login else str(error).replace(login, "…")
        raise StoreConfigError("the store's URL", f"{scheme}://…", got) from None
    config = LinkConfig(
        addresses,
        cluster=cluster,
        db=db,
        username=unquote(user) or None,
        password=unquote(password) or None,
        tls=scheme.startswith("valkeys"),
    )
    return ValkeyStore(config)
