"""Threads that meet types for the first time at once. Ends with 0 unless it crashes. Argument: how many types."""

import sys
import threading

import msgspec

from pocketrank.device.codec import from_msgpack, to_msgpack

THREADS = 8


def fresh(number: int) -> type[msgspec.Struct]:
    """A struct with others inside, as a page has, that nobody has decoded before."""
    inner = msgspec.defstruct(f"Inner{number}", [(f"n{i}", int) for i in range(20)])
    return msgspec.defstruct(f"Outer{number}", [("one", inner), ("two", inner | None, None)])


def main(types: int) -> None:
    sys.setswitchinterval(1e-6)
    barrier = threading.Barrier(THREADS)
    made = [fresh(number) for number in range(types)]
    bodies = [to_msgpack(kind(kind.__annotations__["one"](*range(20)))) for kind in made]

    def decode() -> None:
        for kind, body in zip(made, bodies, strict=True):
            barrier.wait()
            from_msgpack(body, kind)

    threads = [threading.Thread(target=decode) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(int(sys.argv[1]))
