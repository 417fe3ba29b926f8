"""A device whose server releases a signed model that never returns, then a good bundle, then a kill. Argument: a folder.

It runs in a process of its own, because a thread that hangs in a model ends with its process only. Prints what was in use.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.reliability.released import (
    KEYS,
    MODEL,
    NOW_MS,
    make_bundle,
    make_files,
    model,
    release_of,
    serve,
    signed_release,
    weights,
)
from pocketrank.device.bundle.files import MANIFEST, ProbeError
from pocketrank.device.network.client import CloudClient
from pocketrank.device.updates import BundleStore, ProbeConfig, UpdateConfig, Updates


def endless() -> bytes:
    """The small model behind a loop of 2**60 turns."""
    built = onnx.load_from_string(model(weights(), last="Identity"))
    turn = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Sigmoid", ["held"], ["next"])],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    for node in built.graph.node:
        node.output[:] = ["before" if name == "scores" else name for name in node.output]
    built.graph.initializer.append(numpy_helper.from_array(np.array(1 << 60), "turns"))
    built.graph.node.append(helper.make_node("Loop", ["turns", "", "before"], ["scores"], body=turn))
    return bytes(built.SerializeToString())


def main(root: Path) -> None:
    """Follow the three releases and print a line for each."""
    config = UpdateConfig(probe=ProbeConfig(give_up_s=2.0))
    updates = Updates(BundleStore(root / "device", KEYS, clock=lambda: NOW_MS), device_id="device", config=config)
    updates.add(make_bundle(root / "first", 1))
    with serve() as server, CloudClient(server.url) as client:
        for number, (serial, files, kill) in enumerate([(2, {MODEL: endless()}, False), (3, {}, False), (3, {}, True)], 10):
            sent = make_files(serial, files=files)
            release = release_of(sent[MANIFEST], serial, number=number, kill=kill)
            server.files = {**sent, **signed_release(release)}
            with suppress(ProbeError):
                updates.check(client)
            current = updates.current()
            print(current.state, current.serial, sorted(updates.store.state.rejected), updates.probes_given_up, flush=True)
    updates.close()
    os._exit(0)  # a phone ends processes so; an orderly exit waits for no thread, and onnxruntime aborts in one that goes on


if __name__ == "__main__":
    main(Path(sys.argv[1]))
