from pathlib import Path

from benchmarks.reliability.attacks import attacks
from benchmarks.reliability.hostile import attack

EVERY = 25


def test_no_attack_of_every_so_many_is_accepted(tmp_path: Path) -> None:
    shares: list[float] = []
    report = attack(tmp_path, 0, shares.append, EVERY)
    assert report["hostile_accepted"] == 0, report["by_kind"]
    assert report["hostile_bundles"] == len(shares) == sum(sum(kind.values()) for kind in report["by_kind"].values())
    assert shares[-1] == 1


def test_the_corpus_is_large() -> None:
    kinds = [each.kind for each in attacks(1)]
    assert len(kinds) >= 200
    assert len(set(kinds)) >= 50
