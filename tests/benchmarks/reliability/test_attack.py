from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability.__main__ import main
from benchmarks.reliability.attack.cases import CASES
from benchmarks.reliability.attack.measure import ZERO, Aims, AttackConfig, measure_case, missed
from benchmarks.reliability.attack.prober import Probes
from benchmarks.reliability.attack.report import summary
from benchmarks.reliability.attack.scene import Case, Scene, Setting
from benchmarks.reliability.attack.wire import Client, Tally, post
from benchmarks.reliability.attack.world import World, make_world
from pocketrank.cloud.training.run import Run
from tests.cloud.small_published import small_run

CONFIG = AttackConfig(warm_s=0.3, quiet_s=1.0, calm_s=1.5, back_window_s=0.3, memory_every_s=0.02)
BOMB = bytes(200 << 20)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    run = Run.open(small_run(tmp_path_factory.mktemp("run"), items=3000, users=300).folder)
    return make_world(tmp_path_factory.mktemp("world"), 0, 0, seed=0, run=run)


def test_endless_heads_and_forged_tokens(world: World, tmp_path: Path) -> None:
    told: list[float] = []
    for name in ("endless_heads", "spoofing"):
        (tmp_path / name).mkdir()
        case = CASES[name]._replace(seconds=1.0)
        found = measure_case(case, world, tmp_path / name, 0, CONFIG, told.append)
        assert found["memory_peak_mb"] < 64
        assert found["pages"] > 0
        assert 0 < found["quiet_p50_ms"] <= found["quiet_p99_ms"]
        assert found["livez_failed"] == found["exit_code"] == 0
        assert found["held"] == (not found["missed"])
        if name == "endless_heads":
            assert found["bytes"] > 1_000_000
            assert found["connections"] > 1  # each was closed
        else:
            assert found["spoofed"] == 14 * 5 * 4
            assert (found["spoofed_accepted"], found["vectors_leaked"]) == (0, 0)
            assert found["refused"]["401"] > found["refused"]["403"] > 0
    assert max(told) <= 1


@pytest.mark.parametrize("bytes_max", [1 << 20, 1 << 30])
def test_a_server_without_a_bound_does_not_hold(world: World, tmp_path: Path, bytes_max: int) -> None:
    """The same attack on the default limit of a body, and on one so large that it is none."""

    def attack(scene: Scene) -> dict[str, Any]:
        tally = Tally()
        client = Client(scene.server.port, tally, patience_s=10.0)
        client(post("/v1/feedback", BOMB, scene.world.secrets.user, packed=True))
        client.close()
        return tally.report()

    @contextmanager
    def around(world: World, work: Path) -> Iterator[Setting]:
        (work / "limits.toml").write_text(f"[limits]\nbody_max = {bytes_max}\n")
        yield Setting(attack, ("--pipeline", str(work / "limits.toml")))

    case = Case("sends 200 MB in 200 kB", "a user's token", around)
    found = measure_case(case, world, tmp_path, 0, CONFIG, lambda share: None)
    if bytes_max == 1 << 20:
        assert found["refused"] == {"413": 1}
        assert "memory_peak_mb" not in found["missed"]
    else:
        assert found["refused"] == {"400": 1}
        assert not found["held"]
        assert "memory_peak_mb" in found["missed"]


HELD: dict[str, Any] = {
    "memory_growth_mb": 64, "memory_peak_mb": 64, "p99_ratio": 5, "back_s": 2, "server_errors": 0, "livez_failed": 0,
    "livez_max_ms": 100, "page_p99_ms": 9, **dict.fromkeys(ZERO, 0), "open_unfinished_s": 21, "noticed_s": 10, "log_lines": 100,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_growth_mb", 64.1),
        ("memory_peak_mb", 64.1),
        ("p99_ratio", 5.1),
        ("p99_ratio", None),
        ("back_s", 2.1),
        ("back_s", None),
        ("server_errors", 1),
        ("livez_failed", 1),
        ("livez_max_ms", 100.1),
        *((name, 1) for name in ZERO),
        ("open_unfinished_s", 22.0),
        ("noticed_s", 10.1),
        ("noticed_s", None),
        ("log_lines", 101),
    ],
)
def test_each_aim_may_be_missed(name: str, value: float | None) -> None:
    assert missed(HELD, Aims(), has_token=False) == []
    assert missed(HELD | {name: value}, Aims(), has_token=False) == [name]


def test_a_token_may_fill_the_log() -> None:
    assert missed(HELD | {"log_lines": 101}, Aims(), has_token=True) == []


def test_the_report_has_the_worst_and_the_sums() -> None:
    worse = HELD | {"held": False, "memory_peak_mb": 99, "back_s": None, "server_errors": 3, "events_lost": 2}
    report = summary({"a": HELD | {"held": True}, "b": worse})
    assert (report["cases_run"], report["cases_held"]) == (2, 1)
    assert (report["memory_peak_mb"], report["back_s"], report["livez_max_ms"]) == (99, None, 100)
    assert (report["server_errors"], report["events_lost"], report["spoofed_accepted"]) == (3, 2, 0)
    assert list(report["cases"]) == ["a", "b"]


def test_probes_of_a_window() -> None:
    probes = Probes(at=(1.0, 2.0, 3.0), ms=(9.0, 2.0, 5.0), ok=(True, False, True))
    assert probes.window(2.0, 3.5) == (5.0, 1)
    assert probes.window(4.0, 5.0) == (0.0, 0)


def test_a_part_of_another_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--attack", "--only", "disk"]) == 2
    assert "--only: expected one of endless_heads, silence" in capsys.readouterr().err
