"""Vectors of whole sessions: the result of each step of an SDK session, with all inputs and outputs of its model.

`stages` lists the graphs of each form, with the candidate counts (event counts for the stage `event`) that they were compiled
for; null is any. `runs` are the model's runs within a step. A reader compares its own inputs with `inputs` and continues with
`outputs`, or with a failure where they are null. The model here returns noise in sixteenths, so that scores tie and their
weighted sums are exact in any order of addition.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import Form, PageRequest, Stage
from pocketrank.device.paging import FixedPaging
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.runtimes import Runtime, RuntimeRunError, stage_inputs
from pocketrank.device.session.session import FeedSession
from tests.vectors.features import SIZES, SPEC, SPECS, SPLIT, T0, array, lines, make_event, pages

CONSUME, SIZE = 6, 9

Stages = Mapping[Stage, tuple[int, ...] | None]


def _named(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return {name: array(values) for name, values in arrays.items()}


class Noise(Runtime):
    """A model of one stage that returns noise and adds each run to `log`. `mood` may be "fail" or "nan"."""

    mood = ""

    def __init__(
        self, form: Form, stage: Stage, sizes: tuple[int, ...] | None, events: int | None, log: list[dict[str, Any]]
    ) -> None:
        self.form, self.stage, self.list_sizes, self.events, self.log = form, stage, sizes, events, log
        self.input_names = stage_inputs(form, stage)
        self._rng = np.random.default_rng(len(stage))

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        run: dict[str, Any] = {"form": self.form, "stage": self.stage, "inputs": _named(inputs), "outputs": None}
        self.log.append(run)
        if self.mood == "fail":
            raise RuntimeRunError("noise", "a model in a better mood", "this one")
        outputs = dict(self._answers(inputs))
        run["outputs"] = _named(outputs)
        return list(outputs.values())

    def _answers(self, inputs: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
        if self.stage in ("page", "event"):
            rows = inputs["candidate_float" if self.stage == "page" else "event_float"].shape[1]
            yield f"{self.stage}_state", self._noise(1, rows, 2 if self.stage == "page" else 3)
            return
        rows = inputs["page_state" if "page_state" in inputs else "candidate_float"].shape[1]
        if self.stage == "search":
            places = self._rng.permutation(int(inputs["candidate_mask"].sum()))[:3].astype(np.int32)
            yield "order", np.concatenate([places, np.full(5 - len(places), -1, np.int32)])[None]
        scores = self._noise(1, rows, len(SPEC.tasks))
        yield "scores", np.full_like(scores, np.nan) if self.mood == "nan" else scores
        if self.stage == "watch":
            yield "ready", self._noise(1, rows, 2)

    def _noise(self, *shape: int) -> NDArray[np.float32]:
        return (self._rng.integers(0, 5, shape) / 16).astype(np.float32)


class Recorder:
    """Player of steps in an SDK session, which records their results."""

    def __init__(self, spec: str, stages: Mapping[Form, Stages], static: bool) -> None:
        log: list[dict[str, Any]] = []
        self.runtimes = {
            form: {stage: Noise(form, stage, sizes, SPEC.events_max if static else None, log) for stage, sizes in own.items()}
            for form, own in stages.items()
        }
        ranker = Ranker(SPECS[spec], SPLIT, self.runtimes)
        log.clear()
        self.log, self.now_ms, self.pages = log, T0, pages()
        self.requests: list[PageRequest] = []
        paging = FixedPaging(CONSUME, SIZE)
        self.session = FeedSession(ranker, user_id=42, session_id="s-1", paging=paging, clock=lambda: self.now_ms)
        self.record: dict[str, Any] = {
            "spec": f"{spec}.json",
            "split_version": SPLIT,
            "stages": stages,
            "events_static": static,
            "paging": {"consume": CONSUME, "size": SIZE},
            "user_id": 42,
            "session_id": "s-1",
            "steps": [],
        }

    def _note(self, do: str, answer: Any, **more: Any) -> None:
        runs = [dict(run) for run in self.log]
        self.log.clear()
        step = {"do": do, "now_ms": self.now_ms} | more | {"answer": answer}
        self.record["steps"].append(step | ({"runs": runs} if runs else {}))

    def take(self, page: str) -> None:
        answer = self.pages[page]
        if self.requests:
            answer = msgspec.structs.replace(answer, request_id=self.requests[-1].request_id)
        taken = self.session.take(answer)
        self._note("take", taken, page=page, form=self.session.form)

    def next(self, times: int = 1) -> None:
        for _ in range(times):
            self.now_ms += 5_003
            self._note("next", self.session.next())

    def remaining(self) -> None:
        self._note("remaining", self.session.remaining.tolist())

    def feedback(self, item: int, at: int, **changes: Any) -> None:
        event = make_event(item, at, **changes)
        self._note("feedback", self.session.feedback(event), event=msgspec.to_builtins(event))

    def wants_page(self) -> None:
        self._note("wants_page", self.session.wants_page()._asdict())

    def request(self, size: int) -> None:
        self.requests.append(self.session.request(size))
        # The id that each start of a session draws is replaced by one that every reader can make.
        request = msgspec.structs.replace(self.requests[-1], telemetry=None, request_id=f"s-1/{len(self.requests)}")
        self._note("request", to_msgpack(request).hex(), size=size)

    def mood(self, mood: str) -> None:
        for stages in self.runtimes.values():
            for noise in stages.values():
                noise.mood = mood

    def done(self) -> dict[str, Any]:
        names = ("pages_refused", "pages_empty", "features_bad", "columns_missing", "split_mismatch", "vectors_absent",
                 "vectors_bad", "no_model", "duplicates", "already_shown", "reranks", "model_failed", "scores_bad", "events",
                 "events_duplicate", "events_unknown_item", "events_late", "shown_elsewhere")  # fmt: skip
        return self.record | {"counters": {name: getattr(self.session.counters, name) for name in names}}


def _play(r: Recorder) -> dict[str, Any]:
    """Play everything that can happen to a session, once."""
    r.wants_page()
    r.next()
    r.request(SIZE)
    r.take("plain")
    r.remaining()
    r.next(2)
    r.remaining()
    r.feedback(r.record["steps"][-1]["answer"][3], 2, event_id="elsewhere", impression_ms=r.now_ms - 400, like=True)
    shown = [step["answer"] for step in r.record["steps"] if step["do"] == "next" and step["answer"]]
    r.feedback(shown[0], 0, impression_ms=r.now_ms - 9_000)
    r.feedback(
        shown[1], 1, impression_ms=r.now_ms - 5_000, volume=0.4, muted=True
    )  # arrives late: it is earlier than an event before it
    r.feedback(shown[1], 1)  # twice
    r.feedback(999, 3, event_id="unknown")
    r.remaining()
    for at in range(4, 9):
        r.next()
        item = r.record["steps"][-1]["answer"]
        r.feedback(item, at, impression_ms=r.now_ms + (10_000 if at == 8 else 0), event_id=f"late-{at}")
    r.feedback(shown[0], 0, event_id="oldest", impression_ms=T0 - 1)
    r.wants_page()
    r.request(SIZE)
    r.take("bad_ids")
    r.take("nothing")
    r.take("one")
    r.next(2)
    r.take("one")
    r.take("odd")
    r.next()
    r.mood("nan")
    r.feedback(r.record["steps"][-1]["answer"], 10**5, impression_ms=r.now_ms)
    r.remaining()
    r.mood("fail")
    r.take("next")
    r.remaining()
    r.mood("")
    r.take("next")
    r.wants_page()
    r.now_ms += 700_000
    r.wants_page()
    for page in ("other_split", "late", "narrow_vectors", "no_user_vector", "bad_features"):
        r.take(page)
        r.next()
        r.feedback(r.record["steps"][-1]["answer"], 20)
        r.remaining()
    r.take("alike")
    for _ in range(3):
        r.remaining()
        r.next()
        r.feedback(r.record["steps"][-1]["answer"], 21)
    r.take("next")  # the history now holds items without vectors, which the split form reads
    r.now_ms += 700_000_000
    r.remaining()
    r.request(3)
    return r.done()


def sessions() -> dict[str, dict[str, Any]]:
    """Return recorded sessions by name: whole models as in Core ML, as in LiteRT, and stages."""
    any_size: dict[Stage, tuple[int, ...] | None] = {"whole": None}
    parts: dict[Stage, tuple[int, ...] | None] = {"page": SIZES, "event": (1, SPEC.events_max), "watch": SIZES}
    return {
        "whole": _play(Recorder("spec", {"split": any_size, "self_contained": any_size}, static=False)),
        "sizes": _play(Recorder("spec", {"split": {"whole": SIZES}, "self_contained": {"whole": SIZES}}, static=True)),
        "stages": _play(Recorder("spec", {"split": parts, "self_contained": parts}, static=True)),
        "search": _play(Recorder("spec_search", {"split": parts | {"search": SIZES}}, static=True)),
        "self_contained": _play(Recorder("spec", {"self_contained": any_size}, static=False)),
    }


def files() -> dict[str, bytes]:
    """Return the contents of every session's file by its path."""
    return {f"features/sessions/{name}.json": lines(session, 2).encode() + b"\n" for name, session in sessions().items()}
