"""The command line of `benchmarks.reliability`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.command import command_parser, one_line_errors
from benchmarks.errors import BenchmarkError
from benchmarks.reliability import cloud, device
from benchmarks.reliability.attack.cases import CASES
from benchmarks.reliability.attack.report import measure_attacks, print_attacks
from benchmarks.reliability.clocks import SEQUENCES
from benchmarks.reliability.loop import KILLS, measure_loop
from benchmarks.reliability.parts import measure_parts
from pocketrank.sdk_demo.cli.output import JsonTarget

__all__ = ["main"]

_HELP = """\
Kill devices with -9, attack them, and take the cloud away from them; count what is lost.

  python -m benchmarks.reliability --device --json report.json     all of it: some ten minutes on two cores
  python -m benchmarks.reliability --device --kills 60             a taste of it
  python -m benchmarks.reliability --device --only faults          one part of it
  python -m benchmarks.reliability --device --only clocks --sequences 500

Ask the cloud for twice the pages that it can make, kill it with -9, kill its store, fill its disk; count what is lost.

  python -m benchmarks.reliability --cloud --json report.json      all of it: some sixteen minutes on two cores
  python -m benchmarks.reliability --cloud --minutes 1 --kills 20  a taste of it
  python -m benchmarks.reliability --cloud --only store            one part of it

Attack a server, on the loopback interface and within bounds, with and without tokens; measure what honest devices notice.

  python -m benchmarks.reliability --attack --json report.json     all cases: some eight minutes on two cores
  python -m benchmarks.reliability --attack --only endless_heads   one case of it

Kill server, join and trainer of the loop with -9 while users go on; count what is lost, twice or different.

  python -m benchmarks.reliability --loop --json report.json       all of it: some half an hour on two cores
  python -m benchmarks.reliability --loop --kills 30               a taste of it
"""


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the options in `arguments`."""
    parser = command_parser("reliability", _HELP)
    side = parser.add_mutually_exclusive_group(required=True)
    side.add_argument("--device", action="store_true", help="measure the device")
    side.add_argument("--cloud", action="store_true", help="measure the cloud")
    side.add_argument("--attack", action="store_true", help="attack the cloud")
    side.add_argument("--loop", action="store_true", help="measure the loop from a swipe to a changed page")
    parser.add_argument(
        "--kills", type=int, help=f"processes to kill, from 2 [device {device.KILLS}, cloud {cloud.KILLS}, loop {KILLS}]"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments, the load and the attacks [%(default)s]")
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="of clocks that are set [%(default)s]")
    parser.add_argument("--minutes", type=float, default=cloud.MINUTES, help="of overload of the cloud [%(default)s]")
    parser.add_argument("--items", type=int, default=cloud.ITEMS, help="in the cloud's catalogue [%(default)s]")
    parser.add_argument("--events", type=int, default=cloud.EVENTS, help="in the log of a cloud's start [%(default)s]")
    parts = f"device: {', '.join(device.PARTS)}; cloud: {', '.join(cloud.PARTS)}; attack: {', '.join(CASES)}"
    parser.add_argument("--only", metavar="PART", action="append", help=f"a part to measure; may be repeated [all]. {parts}")
    options = parser.parse_args(arguments)
    known = device.PARTS if options.device else cloud.PARTS if options.cloud else CASES
    for part in options.only or ():
        if part not in known:
            raise BenchmarkError("--only", f"one of {', '.join(known)}", part)
    if options.kills is None:
        options.kills = device.KILLS if options.device else KILLS if options.loop else cloud.KILLS
    if options.kills < 2:
        raise BenchmarkError("--kills", "2 or more", str(options.kills))
    if options.sequences < 1:
        raise BenchmarkError("--sequences", "1 or more", str(options.sequences))
    if not options.minutes > 0 or options.items < 1:
        raise BenchmarkError("--minutes and --items", "numbers above 0", f"{options.minutes} and {options.items}")
    if options.events < 1:
        raise BenchmarkError("--events", "a number above 0", str(options.events))
    target = JsonTarget(options.json)
    if options.device:
        report = measure_parts(device.PARTS, device.HEADLINES, options, target.console)
        target.write({"device": report})
        device.print_device(target.console, report)
    elif options.loop:
        report = measure_loop(options.kills, options.seed, target.console)
        target.write(report)
    elif options.attack:
        report = measure_attacks(options, target.console)
        target.write({"attack": report})
        print_attacks(target.console, report)
    else:
        report = measure_parts(cloud.PARTS, cloud.HEADLINES, options, target.console)
        target.write({"cloud": report})
        cloud.print_cloud(target.console, report)


if __name__ == "__main__":
    sys.exit(main())
