"""The samples for Android and iOS in `device/samples`, as far as they can be held here: see the README beside them."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pocketrank.device.blocks import MAX_ELEMENTS
from pocketrank.device.bundle.bundle import write_manifest
from pocketrank.device.contract import BundleManifest, FeatureSpec, FeedbackEvent, FloatFeature, ModelEntry, PageRequest
from pocketrank.device.model.history import GAP_POSITIONS_MAX, GAP_SECONDS_MAX
from tests.device.worlds import SPEC, SPLIT, T0
from tests.vectors.generate import COMMAND, FOLDER, files, written

ROOT = Path(__file__).parent.parent.parent
SAMPLES = ROOT / "device" / "samples"
ANDROID, IOS = (sorted((SAMPLES / system).glob(f"*.{ext}")) for system, ext in (("android", "kt"), ("ios", "swift")))
KOTLIN = "\n".join(path.read_text() for path in ANDROID)
SWIFT = "\n".join(path.read_text() for path in IOS)
SESSIONS = sorted((FOLDER / "features" / "sessions").glob("*.json"))

COMPILER = Path(sys.prefix) / "kotlin" / "node_modules" / "kotlin-compiler" / "lib"
INSTALL = "npm install --prefix .venv/kotlin --no-save kotlin-compiler@2.4.20"
needs_kotlin = pytest.mark.skipif(
    not COMPILER.is_dir() or shutil.which("java") is None,
    reason=f"Kotlin was not compiled: it needs Java 17 and the compiler, {INSTALL}",
)


# --------------------------------------------------------------------------------------------------------------- vectors


def test_no_vector_is_left_over() -> None:
    assert written() <= set(files()), f"{written() - set(files())} are left over; run: {COMMAND}"


def test_the_sessions_take_every_fallback_and_every_form() -> None:
    told = [json.loads(path.read_text()) for path in SESSIONS]
    assert all(sum(session["counters"][name] for session in told) > 0 for name in told[0]["counters"])
    runs = [(run["form"], run["stage"]) for session in told for step in session["steps"] for run in step.get("runs", [])]
    whole = {(form, stage) for form in ("split", "self_contained") for stage in ("whole", "page", "event", "watch")}
    assert set(runs) == {*whole, ("split", "search")}


# ---------------------------------------------------------------------------------------------------------------- Kotlin


def _java(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # One small machine runs it all: the quick compiler of the virtual machine, and no threads for the collector.
    flags = ["-Xmx1g", "-Xms512m", "-XX:MetaspaceSize=256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    return subprocess.run(["java", *flags, *map(str, arguments)], capture_output=True, text=True, check=False)


def _class_path(*names: str) -> str:
    return ":".join(str(COMPILER / f"{name}.jar") for name in names)


@pytest.fixture(scope="session")
def classes(request: pytest.FixtureRequest) -> Path:
    """The Android sample and its reader of the vectors, compiled; kept until one of the sources changes."""
    beside = Path(__file__).parent / "samples"
    sources = [*ANDROID, *sorted(beside.rglob("*.kt"))]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    cache: Path = request.config.cache.mkdir("kotlin")  # type: ignore[union-attr]
    made = cache / digest
    if not made.is_dir():
        for old in cache.iterdir():
            shutil.rmtree(old)
        libraries = _class_path("kotlin-compiler", "kotlin-stdlib", "kotlin-script-runtime", "kotlin-reflect",
                                "kotlinx-coroutines-core-jvm", "annotations-13.0")  # fmt: skip
        options = ["-Werror", "-no-reflect", "-kotlin-home", COMPILER.parent, "-d", cache / "half"]
        done = _java("-cp", libraries, "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", *options, *sources)
        assert done.returncode == 0, done.stderr
        (cache / "half").rename(made)
    return made


def _hold(classes: Path, vectors: Path, scratch: Path) -> subprocess.CompletedProcess[str]:
    (scratch / "bundles").mkdir(parents=True, exist_ok=True)
    return _java("-cp", f"{classes}:{_class_path('kotlin-stdlib')}", "pocketrank.sample.VectorsKt", vectors, scratch)


def _bundle(folder: Path, spec: FeatureSpec = SPEC, expires_ms: int | None = None) -> Path:
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "split.tflite").write_bytes(b"a model")
    entry = ModelEntry(form="split", format="tflite", precision="fp32", path="models/split.tflite", bytes=0)
    write_manifest(
        folder, name="n", serial=1, split_version=SPLIT, spec=spec, models=[entry], created_ms=T0, expires_ms=expires_ms
    )
    return folder


def _change(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    manifest = msgspec.json.decode(path.read_bytes(), type=BundleManifest)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, **changes)))


def _bundles(folder: Path) -> None:
    """Bundles named for what must become of them."""
    _bundle(folder / "good")
    _bundle(folder / "good_until_then", expires_ms=T0 + 1)
    (_bundle(folder / "good_with_more") / "unlisted").write_text("x")
    _bundle(folder / "bad_expired", expires_ms=T0)
    (_bundle(folder / "bad_changed") / "models" / "split.tflite").write_bytes(b"A model")
    (_bundle(folder / "bad_cut") / "models" / "split.tflite").write_bytes(b"a mode")
    (_bundle(folder / "bad_missing") / "models" / "split.tflite").unlink()
    (_bundle(folder / "bad_text") / "manifest.json").write_text('{"version": 1, "files": [')
    (folder / "bad_nothing").mkdir()
    _change(_bundle(folder / "bad_version"), version=2)
    _change(_bundle(folder / "bad_size"), models=(ModelEntry(
        form="split", format="tflite", precision="fp32", path="models/split.tflite", bytes=8
    ),))  # fmt: skip
    linked = _bundle(folder / "bad_link") / "models" / "split.tflite"
    linked.rename(folder.parent / "elsewhere")
    linked.symlink_to(folder.parent / "elsewhere")
    away = _bundle(folder / "bad_path")
    listed = msgspec.json.decode((away / "manifest.json").read_bytes(), type=BundleManifest).files
    outside = msgspec.structs.replace(listed[0], path="models/../models/split.tflite")
    _change(away, files=(outside, *listed))
    strange = FloatFeature(name="moon", min=0, max=1)
    spec = msgspec.json.encode(msgspec.structs.replace(SPEC, context_floats=(strange,)))
    moon = _bundle(folder / "bad_spec")
    (moon / "spec.json").write_bytes(spec)
    listed = msgspec.json.decode((moon / "manifest.json").read_bytes(), type=BundleManifest).files
    own = {"bytes": len(spec), "sha256": hashlib.sha256(spec).hexdigest()}
    _change(moon, files=tuple(msgspec.structs.replace(f, **own) if f.path == "spec.json" else f for f in listed))


@needs_kotlin
def test_the_android_sample_does_what_the_sdk_does(classes: Path, tmp_path: Path) -> None:
    _bundles(tmp_path / "bundles")
    held = _hold(classes, FOLDER, tmp_path)
    assert held.returncode == 0, f"{held.stderr}\nwhere the vectors are out of date, run: {COMMAND}"
    assert held.stdout.split() == ["held", *", ".join(path.stem for path in SESSIONS).split()]


@needs_kotlin
@pytest.mark.parametrize(
    ("file", "was", "told"),
    [
        ("sessions/sizes.json", '"event_gap":{"shape":[1,6,2],"values":[', "event_gap"),
        ("sessions/stages.json", '"do":"next","now_ms":1700000010006,"answer":', "next"),
        ("sessions/whole.json", '"already_shown":', "already_shown"),
        ("encodings.json", '"context":{"shape":[2],"values":[', "moments"),
    ],
)
def test_a_difference_is_told(classes: Path, tmp_path: Path, file: str, was: str, told: str) -> None:
    shutil.copytree(FOLDER, tmp_path / "vectors")
    path = tmp_path / "vectors" / "features" / file
    text = path.read_text()
    assert was in text
    path.write_text(text.replace(was, was + "1", 1))  # another digit before the number that stands there
    held = _hold(classes, tmp_path / "vectors", tmp_path)
    assert held.returncode != 0
    assert told in held.stderr


# ----------------------------------------------------------------------------------------------------------------- Swift


@pytest.mark.parametrize("path", IOS, ids=lambda path: path.name)
def test_swift_parses_though_it_was_never_compiled(path: Path) -> None:
    reason = "Swift was not even parsed: pip install tree-sitter tree-sitter-swift"
    tree_sitter: Any = pytest.importorskip("tree_sitter", reason=reason)
    grammar: Any = pytest.importorskip("tree_sitter_swift", reason=reason)
    tree = tree_sitter.Parser(tree_sitter.Language(grammar.language())).parse(path.read_bytes())
    assert not tree.root_node.has_error


def _numbers(text: str, pattern: str) -> dict[str, int]:
    """Whole-number constants by name in capitals, shifts worked out."""
    found = {}
    for name, number, shift in re.findall(pattern + r" = (\d[\d_]*)L?(?: (?:shl|<<) (\d+))?(?![\d.])", text):
        capitals = name if name.isupper() else re.sub(r"([A-Z])", r"_\1", name).upper()
        found[capitals] = int(number) << int(shift or 0)
    return found


def test_both_samples_have_the_same_numbers_and_those_of_the_sdk() -> None:
    kotlin, swift = _numbers(KOTLIN, r"val ([A-Z][A-Z_]+)"), _numbers(SWIFT, r"static let (\w+)(?:: Int64)?")
    both = kotlin.keys() & swift.keys()
    assert {name: kotlin[name] for name in both} == {name: swift[name] for name in both}
    assert both >= {
        "GAP_SECONDS_MAX", "GAP_POSITIONS_MAX", "FAR_MS", "FAR_POSITION", "HOUR_MS", "SHOWN_MAX", "WAITING_MAX", "IDS_MAX",
        "ELEMENTS_MAX", "COUNT_MAX", "WIDTH_MAX", "TEXT_MAX", "PATH_MAX", "ANSWER_MAX", "AHEAD", "EVENTS_MAX", "BYTES_MAX",
        "DOUBT",
    }  # fmt: skip
    sdk = {"GAP_SECONDS_MAX": GAP_SECONDS_MAX, "GAP_POSITIONS_MAX": GAP_POSITIONS_MAX, "ELEMENTS_MAX": MAX_ELEMENTS}
    assert {name: kotlin[name] for name in sdk} == sdk


@pytest.mark.parametrize(
    ("file", "functions"),
    [
        ("FeedSession", "take next remaining feedback wantsPage request chooseForm rank scored show"),
        ("Features", "page feedback context withoutVectors finite"),
        ("EventHistory", "append inputs"),
        ("Ranker", "alike order inputs"),
        ("Outbox", "add acknowledged batch remember trim rewrite framed"),
        ("FeedController", "start finished fill ask answered failed succeeded stop post openRanker"),
        ("Contract", "settles"),
        ("Impression", "finish onBuffering onScroll"),
    ],
)
def test_both_samples_have_the_same_functions(file: str, functions: str) -> None:
    kotlin = set(re.findall(r"\bfun (\w+)\(", (SAMPLES / "android" / f"{file}.kt").read_text()))
    swift = set(re.findall(r"\bfunc (\w+)\(", (SAMPLES / "ios" / f"{file}.swift").read_text()))
    assert kotlin >= set(functions.split())
    assert swift >= set(functions.split())


_SOMETIMES = {"age_ms", "actions"}
"""Fields that an event has only at times, which the samples add to the others."""


def test_swift_names_the_wire_as_the_contract_does() -> None:
    contract, session, spec = ((SAMPLES / "ios" / f"{name}.swift").read_text() for name in ("Contract", "FeedSession", "Spec"))
    events = contract[contract.index("var fields") : contract.index("func encode")]
    assert re.findall(r'"(\w+)":', events) == [name for name in FeedbackEvent.__struct_fields__ if name not in _SOMETIMES]
    body = session[session.index("let body") : session.index("return PageRequest(")]
    assert set(re.findall(r'"(\w+)": ', body)) == set(PageRequest.__struct_fields__) - {"experiment", "telemetry", "own_ids"}
    keys = spec[spec.index("case version, tasks") : spec.index("static let context")]
    named = {*keys.splitlines()[0].removeprefix("case ").split(", "), *re.findall(r'= "(\w+)"', keys)}
    assert named == set(FeatureSpec.__struct_fields__) - {"list_sizes", "search", "survival_task"}


# ------------------------------------------------------------------------------------------------------------- all files


@pytest.mark.parametrize("path", [*ANDROID, *IOS], ids=lambda path: path.name)
def test_each_file_is_short_and_says_how_far_it_was_tried(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < 300
    tried = "never compiled and never run" if path.suffix == ".swift" else "not run on a device"
    assert lines[0].startswith("// SAMPLE, ")
    assert tried in lines[0]
