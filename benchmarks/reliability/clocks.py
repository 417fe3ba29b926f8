"""Clock chaos: random sequences in which the clocks of devices and of the server are set, by years, while all of it is in use.

A sequence has one user with one or two devices and one server, on injected clocks and one true time. Real are the session, its
impressions, the store on disk with the outbox, the uploader, the bytes of every message, the intake, the log in SQLite and the
user's state. Random are swipes, refills, uploads, the network and its delays, and lost answers, and among them

- the wall clock of a device or of the server is set: by seconds to years, to 1970, or right;
- a device is suspended: its boot clock goes on, with an item on the screen or not;
- an app restarts, or its device does: the boot clock begins at 0, and in half of the sequences the wall clock may be set while
  the device is off. Some systems do not name their starts (`DeviceClock.boot`);
- the server restarts, its boot clock too, and replays its log under whatever its wall clock says.

In the end the network is back, and nothing is set any more. Then each session must get a page and send all its feedback within
`ChaosConfig.recovery_ms`, or it is stuck. The log must have every event that a session accepted. The state, and the state of
another server that replays the log, must have the events in the order in which they were shown, as with right clocks: where two
are in another order, they were shown within the bound of `FeedbackIntake.admit` of each other.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.reliability.clocks_world import DAY, SECOND, ChaosConfig, Machine, Network, Phone, Server, Truth, spread
from pocketrank.cloud.pages.arrival import TOLERANCE_MS
from tests.cloud.small_published import SmallRun, small_run

__all__ = ["SEQUENCES", "Outcome", "deviation", "run_chaos", "run_sequence"]

SEQUENCES = 10_000
"""Default number of sequences."""
_FAILED_MAX = 20
_MEMORY = Path("/dev/shm")  # closing a database syncs it, which takes four fifths of the time on a disk


class Outcome(NamedTuple):
    """What one sequence ended with."""

    stuck: int
    lost: int
    differs: bool
    """Whether the state, live or replayed, is not that of right clocks within `bound_ms`."""
    deviation_ms: int
    """Largest time between the impressions of two events that stand in the wrong order."""
    bound_ms: int
    set_while_off: bool
    """Whether a clock was set while its device or server was off."""
    counts: Counter[str]


def run_sequence(seed: int, run: SmallRun, work: Path, config: ChaosConfig | None = None) -> Outcome:
    """Run the sequence of `seed` with its files in the empty folder `work`. `run` has `config.items` items."""
    config, rng, truth, counts = config or ChaosConfig(), random.Random(seed), Truth(), Counter[str]()
    sets_while_off = rng.random() < 0.5
    items = run.published.item_id[1:].tolist()
    rng.shuffle(items)
    machine = Machine(truth, True)
    if sets_while_off and rng.random() < 0.5:
        machine.step(rng)
    server = Server(work / "log.db", run, truth, machine, items, config)
    phones = []
    for number in range(1 + (rng.random() < 0.3)):
        clock = Machine(truth, has_boot_name=rng.random() < 0.8)
        if rng.random() < 0.5:
            clock.step(rng)
        network = Network(truth, server, rng, config)
        phones.append(Phone(work / f"phone-{number}.db", f"{seed}/{number}", truth, network, clock, rng))

    def disturb(phone: Phone) -> None:
        """Set a clock, or suspend the device."""
        what = rng.choices(("device_steps", "server_steps", "suspends"), (5, 2, 3))[0]
        counts[what] += 1
        match what:
            case "device_steps":
                phone.clock.step(rng)
            case "server_steps":
                machine.step(rng)
            case _:
                truth.ms += spread(rng, 60 * SECOND, 200 * DAY)

    def start_again(phone: Phone) -> None:
        """Restart an app, a device or the server."""
        what = rng.choices(("app_restarts", "reboots", "server_restarts"), (2, 3, 3))[0]
        counts[what] += 1
        off = what == "reboots"
        clock = machine if what == "server_restarts" else phone.clock
        if what == "server_restarts":
            if not sets_while_off:
                clock.off_ms = server.began_off_ms
        else:
            phone.end()
        truth.ms += spread(rng, SECOND, 40 * DAY)
        if sets_while_off and rng.random() < 0.5:
            clock.step(rng)
        if what != "app_restarts":
            clock.restart()
            truth.ms += rng.randrange(10 * 60 * SECOND)
        if what == "server_restarts":
            server.restart()
        else:
            phone.restart(off)

    try:
        for _ in range(config.actions):
            phone = rng.choice(phones)
            match rng.choices(("swipe", "refill", "upload", "network", "disturb", "restart"), (20, 8, 3, 2, 5, 3))[0]:
                case "swipe":
                    phone.swipe(lambda phone=phone: disturb(phone) if rng.random() < 0.1 else None)  # type: ignore[misc]
                case "refill":
                    phone.refill()
                case "upload":
                    phone.upload()
                case "network":
                    phone.network.works = not phone.network.works
                case "disturb":
                    disturb(phone)
                case "restart":
                    start_again(phone)
        return _end(truth, server, phones, machine, rng, config, counts)
    finally:
        server.close()
        for phone in phones:
            phone.store.close()


def _end(
    truth: Truth,
    server: Server,
    phones: Sequence[Phone],
    machine: Machine,
    rng: random.Random,
    config: ChaosConfig,
    counts: Counter[str],
) -> Outcome:
    """Let all devices send what they have, and compare."""
    stuck = 0
    for phone in phones:
        phone.network.works, phone.network.loses = True, 0.0
        until_ms, paged = truth.ms + config.recovery_ms, False
        while truth.ms < until_ms:
            paged = phone.refill() or paged
            phone.upload()
            truth.ms += config.recovery_step_ms
        stuck += not paged or len(phone.store.outbox) > 0
        for _ in range(config.last_swipes):
            phone.swipe(lambda: None)
        phone.session.flush(phone.network)  # type: ignore[arg-type]
    logged = {event.event_id: event for event in server.log.replay()}
    lost = len(set().union(*(phone.accepted for phone in phones)) - logged.keys())
    extra_ms = server.extra_ms + sum(phone.extra_ms for phone in phones)
    orders = [server.order()]
    machine.step(rng)
    server.restart()
    orders.append(server.order())
    shown, starts = truth.shown, sum(phone.starts for phone in phones)
    bound_ms = 2 * (TOLERANCE_MS + config.way_max_ms) + 2 * SECOND * starts + extra_ms
    deviation_ms = max(deviation([shown[item] for item in order if item in shown]) for order in orders)
    whole = all(sorted(order) == sorted(shown) for order in orders)
    counts["events"] = len(shown)
    counts["corrected"] = sum(hasattr(event, "correction_ms") for event in logged.values())
    differs = not whole or orders[0] != orders[1] or deviation_ms > bound_ms
    return Outcome(stuck, lost, differs, deviation_ms, bound_ms, extra_ms > 0, counts)


def deviation(shown_ms: Sequence[int]) -> int:
    """Return the largest time by which one stands behind a later one."""
    worst = latest = 0
    for ms in shown_ms:
        latest = max(latest, ms)
        worst = max(worst, latest - ms)
    return worst


def run_chaos(
    work: Path, sequences: int, seed: int, progress: Callable[[float], None], config: ChaosConfig | None = None
) -> dict[str, Any]:
    """Run the sequences of `sequences` seeds from `seed` on, and return the figures of the report."""
    config = config or ChaosConfig()
    run = small_run(work / "run", items=config.items)
    counts, failed = Counter[str](), list[dict[str, Any]]()
    worst = {False: [0, 0, 0], True: [0, 0, 0]}  # by `set_while_off`: sequences, largest bound and deviation
    for number in range(sequences):
        with TemporaryDirectory(prefix="pocketrank-", dir=_MEMORY if _MEMORY.is_dir() else work) as folder:
            found = run_sequence(seed + number, run, Path(folder), config)
        counts.update(found.counts)
        counts.update(stuck_sessions=found.stuck, lost_events=found.lost, states_differing=found.differs)
        of = worst[found.set_while_off]
        of[:] = of[0] + 1, max(of[1], found.bound_ms), max(of[2], found.deviation_ms)
        if found.stuck or found.lost or found.differs:
            failed.append({"seed": seed + number} | {k: v for k, v in found._asdict().items() if k != "counts"})
        progress((number + 1) / sequences)
    names = ("sequences", "bound_ms", "deviation_ms")
    return {
        "sequences": sequences,
        "stuck_sessions": counts.pop("stuck_sessions"),
        "lost_events": counts.pop("lost_events"),
        "states_differing": counts.pop("states_differing"),
        **{name: max(worst[False][at], worst[True][at]) for at, name in enumerate(names) if at},
        "set_while_on": dict(zip(names, worst[False], strict=True)),
        "set_while_off": dict(zip(names, worst[True], strict=True)),
        "counts": dict(sorted(counts.items())),
        "failed": failed[:_FAILED_MAX],
    }
