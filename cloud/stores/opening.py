from pathlib import Path

from cloud.stores.mapped import MappedStore


def open_store(url):
    return MappedStore(Path(url.removeprefix("mmap:")))
