"""What every runtime must do, held to the same arithmetic in numpy."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from pocketrank.device.contract import Form
from pocketrank.device.runtimes import INPUT_NAMES, Runtime, RuntimeLoadError, RuntimeRunError, open_runtime
from tests.device.worlds import SPEC, onnx_model, reference, widths

VECTORS = Path(__file__).parent.parent.parent / "vectors"
TOLERANCE = 1e-5
"""Largest difference to numpy; the project's bar for fp32 models against torch."""


def random_inputs(form: Form, candidates: int, events: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    rng, axes = np.random.default_rng(seed), {"N": candidates, "T": events}
    out: dict[str, NDArray[Any]] = {}
    for name in INPUT_NAMES[form]:
        shape = (1, *[axes[d] if isinstance(d, str) else d for d in widths(SPEC)[name]])
        if name.endswith("_category"):
            out[name] = rng.integers(0, 10, shape, dtype=np.int32)
        elif name.endswith("_mask"):
            out[name] = (rng.random(shape) < 0.7).astype(np.float32)
        else:
            out[name] = (rng.random(shape) * (50 if name == "event_gap" else 1)).astype(np.float32)
    return out


class Conformance:
    """Any runtime, any form."""

    def open(self, form: Form, folder: Path) -> Runtime:
        raise NotImplementedError

    @pytest.mark.parametrize("form", ["split", "self_contained"])
    @pytest.mark.parametrize("candidates", [4, 8])
    def test_scores_are_those_of_the_model(self, form: Form, candidates: int, tmp_path: Path) -> None:
        runtime = self.open(form, tmp_path)
        assert runtime.input_names == INPUT_NAMES[form]
        for seed in range(3):
            inputs = random_inputs(form, candidates, SPEC.events_max, seed)
            scores = runtime.run(inputs)
            assert scores.dtype == np.float32
            np.testing.assert_allclose(scores, reference(SPEC, inputs), atol=TOLERANCE)

    def test_views_of_larger_arrays_are_read_right_and_left_alone(self, tmp_path: Path) -> None:
        runtime, inputs = self.open("split", tmp_path), random_inputs("split", 4, SPEC.events_max)
        expected = runtime.run(inputs)
        views = {}
        for name, x in inputs.items():
            larger = np.full((1, x.shape[1] + 7, *x.shape[2:]), 99, x.dtype)
            larger[:, 3 : 3 + x.shape[1]] = x
            views[name] = larger[:, 3 : 3 + x.shape[1]]
        np.testing.assert_array_equal(runtime.run(views), expected)
        for name, x in inputs.items():
            np.testing.assert_array_equal(views[name], x)

    def test_outputs_survive_the_next_run(self, tmp_path: Path) -> None:
        runtime = self.open("split", tmp_path)
        first = runtime.run(random_inputs("split", 4, SPEC.events_max, 1))
        kept = first.copy()
        runtime.run(random_inputs("split", 4, SPEC.events_max, 2))
        np.testing.assert_array_equal(first, kept)

    def test_runs_from_several_threads_do_not_mix(self, tmp_path: Path) -> None:
        runtime = self.open("split", tmp_path)
        cases = [random_inputs("split", size, SPEC.events_max, seed) for seed, size in enumerate((4, 8, 4, 8))]
        worst: list[float] = []

        def work(inputs: dict[str, NDArray[Any]]) -> None:
            expected = reference(SPEC, inputs)
            worst.append(max(float(np.abs(runtime.run(inputs) - expected).max()) for _ in range(50)))

        threads = [threading.Thread(target=work, args=(case,)) for case in cases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(worst) == len(cases)
        assert max(worst) <= TOLERANCE

    @pytest.mark.parametrize("change", ["missing", "width", "dtype"])
    def test_inputs_that_the_model_was_not_made_for(self, change: str, tmp_path: Path) -> None:
        runtime, inputs = self.open("split", tmp_path), random_inputs("split", 4, SPEC.events_max)
        before = runtime.run(inputs)
        wrong = dict(inputs)
        if change == "missing":
            del wrong["context"]
        elif change == "width":
            wrong["event_float"] = np.zeros((1, SPEC.events_max, 9), np.float32)
        else:
            wrong["candidate_category"] = inputs["candidate_category"].astype(np.float32)
        with pytest.raises(RuntimeRunError):
            runtime.run(wrong)
        np.testing.assert_array_equal(runtime.run(inputs), before)


class TestOnnx(Conformance):
    def open(self, form: Form, folder: Path) -> Runtime:
        path = folder / f"{form}.onnx"
        onnx.save(onnx_model(SPEC, form), path)
        return open_runtime(path, "onnx")

    @pytest.mark.parametrize(("candidates", "events"), [(1, 1), (3, 2), (7, 6)])
    def test_axes_are_dynamic(self, candidates: int, events: int, tmp_path: Path) -> None:
        runtime, inputs = self.open("split", tmp_path), random_inputs("split", candidates, events)
        assert (runtime.list_sizes, runtime.events) == (None, None)
        np.testing.assert_allclose(runtime.run(inputs), reference(SPEC, inputs), atol=TOLERANCE)

    def test_fixed_axes_are_reported(self, tmp_path: Path) -> None:
        onnx.save(onnx_model(SPEC, "split", candidates=8, events=6), tmp_path / "fixed.onnx")
        runtime = open_runtime(tmp_path / "fixed.onnx", "onnx")
        assert (runtime.list_sizes, runtime.events) == ((8,), 6)

    def test_foreign_inputs_are_refused(self, tmp_path: Path) -> None:
        model = onnx_model(SPEC, "split")
        model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(RuntimeLoadError, match="inputs of the contract, got `pixels`"):
            open_runtime(tmp_path / "m.onnx", "onnx")


class TestLiteRt(Conformance):
    """On two committed models: one with the contract's input names, one with positions (`args_0`, ...)."""

    def open(self, form: Form, folder: Path) -> Runtime:
        return open_runtime(VECTORS / f"{form}.tflite", "tflite")

    def test_its_sizes_are_those_of_the_signatures(self, tmp_path: Path) -> None:
        runtime = self.open("split", tmp_path)
        assert (runtime.list_sizes, runtime.events) == ((4, 8), SPEC.events_max)

    def test_another_candidate_count_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeRunError, match=r"a candidate count among \(4, 8\), got 5"):
            self.open("split", tmp_path).run(random_inputs("split", 5, SPEC.events_max))

    def test_another_event_count_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeRunError, match=r"Expected float32 \[1, 6, 3\], got float32 \[1, 5, 3\] - at event_float"):
            self.open("split", tmp_path).run(random_inputs("split", 4, 5))


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_files_that_are_no_models(format: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeLoadError, match="Expected a file, got none"):
        open_runtime(tmp_path / "nothing", format)
    with pytest.raises(RuntimeLoadError, match="Expected a file, got none"):
        open_runtime(tmp_path, format)
    (tmp_path / "junk").write_bytes(b"\x00\x01junk" * 100)
    with pytest.raises(RuntimeLoadError, match="model"):
        open_runtime(tmp_path / "junk", format)


def test_a_cut_model(tmp_path: Path) -> None:
    data = onnx_model(SPEC, "split").SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(RuntimeLoadError):
        open_runtime(tmp_path / "cut.onnx", "onnx")
    flat = (VECTORS / "split.tflite").read_bytes()
    (tmp_path / "cut.tflite").write_bytes(flat[:40])
    with pytest.raises(RuntimeLoadError):
        open_runtime(tmp_path / "cut.tflite", "tflite")


def test_core_ml_has_no_runtime_here(tmp_path: Path) -> None:
    with pytest.raises(RuntimeLoadError, match=r"a format with a runtime here \(onnx, tflite\), got `coreml`"):
        open_runtime(tmp_path, "coreml")
