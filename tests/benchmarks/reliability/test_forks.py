import subprocess
import sys

_PROGRAM = """
import os
import signal
from benchmarks.reliability.forks import fork_each, report

def do(order: str) -> None:
    report(f"does {order}")
    if order == "fails":
        raise RuntimeError("on purpose")
    if order == "dies":
        os.kill(os.getpid(), signal.SIGKILL)

fork_each(str, do)
"""


def test_each_order_is_done_by_a_process_whose_end_is_told() -> None:
    orders = "\n".join(f'"{order}"' for order in ("works", "fails", "dies", "works"))
    done = subprocess.run([sys.executable, "-c", _PROGRAM], input=orders, capture_output=True, text=True, check=True)
    told = [line.split() for line in done.stdout.splitlines()]
    assert [what for what, _ in told] == ["pid", "does", "end"] * 4
    assert len({value for what, value in told if what == "pid"}) == 4
    assert [value for what, value in told if what != "pid"] == ["works", "0", "fails", "1", "dies", "-9", "works", "0"]
    assert done.stderr.endswith("RuntimeError: on purpose\n")
