from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.reliability.released import MODEL, SPEC, golden, make_bundle, model, weights
from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import GOLDEN, ProbeError
from pocketrank.device.codec import to_block, to_msgpack
from pocketrank.device.contract import CategoryFeature
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.updates import ProbeConfig, probe
from tests.device.worlds import make_bundle as make_world

WHOLE = golden(weights())
NO_CASES = to_msgpack(msgspec.structs.replace(WHOLE, cases=()))
"""A file without cases, which would fail before the sweep does."""


def _probe(folder: Path, config: ProbeConfig | None = None, **keys: Any) -> None:
    bundle = Bundle.open(make_bundle(folder, 1, **keys))
    probe(bundle, Ranker.open(bundle), config=config)


def _poisoned(row: int) -> bytes:
    table = weights()["table"]
    table[row] = np.nan
    return model({**weights(), "table": table})


def test_a_good_bundle_passes_with_golden_scores_and_without(tmp_path: Path) -> None:
    _probe(tmp_path / "with")
    bundle = make_world(tmp_path / "without")
    assert bundle.golden() is None
    probe(bundle, Ranker.open(bundle))


@pytest.mark.parametrize("fixed", [(4, "T"), (8, 6), ("N", 6)])
def test_models_of_fixed_sizes_pass(tmp_path: Path, fixed: tuple[Any, Any]) -> None:
    bundle = make_world(tmp_path, candidates=fixed[0], events=fixed[1])
    probe(bundle, Ranker.open(bundle))


@pytest.mark.parametrize("row", [1, 38, 39])
def test_every_code_is_tried(tmp_path: Path, row: int) -> None:
    with pytest.raises(ProbeError, match="probabilities"):
        _probe(tmp_path, files={MODEL: _poisoned(row), GOLDEN: NO_CASES})


def test_only_some_of_many_codes_are_tried(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(SPEC, candidate_categories=(CategoryFeature(name="category", size=41),))
    with pytest.raises(ProbeError, match="runs"):  # the last of 41 is always one of them, and the table has 40
        _probe(tmp_path, ProbeConfig(codes_max=2), spec=spec, files={GOLDEN: NO_CASES})


def test_scores_that_differ_from_the_recorded_ones(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"golden scores within 0\.0001, got a difference of"):
        _probe(tmp_path, files={GOLDEN: to_msgpack(golden(weights(1)))})


def test_no_probabilities(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="probabilities from the self_contained model"):
        _probe(
            tmp_path,
            files={
                MODEL: model(weights(), last="Exp"),
                GOLDEN: NO_CASES,
            },
        )


def test_a_model_that_fails_its_users_later(tmp_path: Path) -> None:
    bundle = make_world(tmp_path, poison=float("nan"))
    with pytest.raises(ProbeError, match="probabilities"):
        probe(bundle, Ranker.open(bundle))


@pytest.mark.parametrize(
    ("config", "message"), [(ProbeConfig(ms_max=0), "a median run"), (ProbeConfig(seconds_max=0), "a probe of")]
)
def test_too_slow(tmp_path: Path, config: ProbeConfig, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        _probe(tmp_path, config)


def test_golden_scores_of_other_kinds_of_models_are_passed_over(tmp_path: Path) -> None:
    other = msgspec.structs.replace(golden(weights(1)).tolerances[0], precision="int8")
    _probe(tmp_path, files={GOLDEN: to_msgpack(msgspec.structs.replace(golden(weights(1)), tolerances=(other,)))})


@pytest.mark.parametrize("name", list(WHOLE.cases[0].inputs))
def test_golden_cases_of_another_spec(tmp_path: Path, name: str) -> None:
    case = WHOLE.cases[0]
    wide = to_block(np.zeros((8, 3)), "f4")
    for inputs in ({k: v for k, v in case.inputs.items() if k != name}, {**case.inputs, name: wide}):
        bad = msgspec.structs.replace(WHOLE, cases=(msgspec.structs.replace(case, inputs=inputs),))
        with pytest.raises(ProbeError, match="a golden case 0 of the spec's shapes"):
            _probe(tmp_path, files={GOLDEN: to_msgpack(bad)})


@pytest.mark.parametrize("data", [b"", b"\xc1", msgspec.msgpack.encode({"cases": 1})])
def test_golden_garbage(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ProbeError, match=GOLDEN):
        _probe(tmp_path, files={GOLDEN: data})
