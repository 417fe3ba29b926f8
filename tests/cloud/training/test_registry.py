import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from pocketrank.cloud.published.published import PublishedError
from pocketrank.cloud.training.registry import FolderRegistry, RegistryError, RunRegistry, active_beside
from pocketrank.cloud.training.registry_opening import open_registry
from pocketrank.cloud.training.run import Run, RunError
from tests.cloud.small_published import small_run


@pytest.fixture
def registry(tmp_path: Path) -> FolderRegistry:
    for name in "abc":
        small_run(tmp_path / name)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "started.json").touch()
    (tmp_path / "bundles").mkdir()
    return FolderRegistry(tmp_path)


def active(registry: RunRegistry) -> tuple[str, ...]:
    found = registry.active()
    assert found is not None
    return (found.run, *found.former)


def test_the_runs_of_a_folder_are_those_with_the_files_of_a_training(registry: FolderRegistry) -> None:
    assert registry.names() == ["a", "b", "c", "unfinished"]
    assert registry.active() is None
    assert registry.history() == ()
    assert isinstance(registry.open("a"), Run)
    assert registry.listed("a").record == registry.open("a").record
    listed = registry.listed("unfinished")
    assert listed.record is None
    assert "Expected a finished run" in listed.why_not


def test_an_activation_is_known_to_everybody_and_a_rollback_takes_one_step_back(registry: FolderRegistry) -> None:
    other = pickle.loads(pickle.dumps(registry))
    for name in "abc":
        registry.activate(name)
    assert active(other) == ("c", "b", "a")
    assert other.rollback().run == "b"
    assert active(registry) == ("b", "c", "a")
    registry.rollback()
    assert active(other) == ("a", "b", "c")
    with pytest.raises(RegistryError, match=r"got only `a` - at .*Activate a run by its name"):
        registry.rollback()
    registry.activate("c")
    assert registry.rollback().run == "a"
    assert [(one.run, one.rollback) for one in other.history()] == [
        ("a", False), ("b", False), ("c", False), ("b", True), ("a", True), ("c", False), ("a", True),
    ]  # fmt: skip
    found = registry.active()
    assert found is not None
    assert found.number == 7


def test_to_activate_the_active_run_again_is_no_step_to_take_back(registry: FolderRegistry) -> None:
    for name in "abb":
        registry.activate(name)
    assert registry.rollback().run == "a"
    assert active(registry) == ("a", "b")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("unfinished", RunError, "Expected a finished run"),
        ("nobody", RegistryError, "Expected one of the runs a, b, c, unfinished, got `nobody`"),
        ("../x", RegistryError, "Expected one of the runs"),
        ("b", PublishedError, "item_row.npy"),
    ],
)
def test_a_run_that_is_not_whole_is_not_activated(
    registry: FolderRegistry, name: str, error: type[Exception], message: str
) -> None:
    (registry.folder / "b" / "published" / "item_row.npy").unlink()
    registry.activate("a")
    with pytest.raises(error, match=message):
        registry.activate(name)
    assert active(registry) == ("a",)


def test_a_rollback_to_a_run_that_is_gone_changes_nothing(registry: FolderRegistry) -> None:
    registry.activate("a")
    registry.activate("b")
    (registry.folder / "a" / "run.json").unlink()
    with pytest.raises(RegistryError, match="got `a`"):
        registry.rollback()
    assert active(registry) == ("b", "a")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 2, "history": []}'])
def test_a_damaged_list_is_named_with_what_to_do(registry: FolderRegistry, text: bytes) -> None:
    (registry.folder / "active.json").write_bytes(text)
    for call in (registry.active, lambda: registry.activate("a"), registry.rollback):
        with pytest.raises(RegistryError, match=r"active\.json\. (Remove the file and activate|Install the version)"):
            call()
    assert (registry.folder / "active.json").read_bytes() == text


def test_activations_at_once_are_all_kept(registry: FolderRegistry) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(registry.activate, "abc" * 8))
    assert sorted(one.run for one in registry.history()) == sorted("abc" * 8)
    assert not list(registry.folder.glob("*.part"))


def test_the_parent_of_a_new_run_is_the_active_one_beside_it(registry: FolderRegistry, tmp_path: Path) -> None:
    assert active_beside(tmp_path / "new") is None
    registry.activate("b")
    assert active_beside(tmp_path / "new") == "b"
    assert active_beside(tmp_path / "b") is None
    assert active_beside(tmp_path / "nowhere" / "new") is None
    (tmp_path / "active.json").write_bytes(b"{")
    assert active_beside(tmp_path / "new") is None


def test_a_run_of_before_has_no_parent_and_no_time(registry: FolderRegistry) -> None:
    path = registry.folder / "a" / "run.json"
    record = msgspec.json.decode(path.read_bytes())
    del record["created"], record["parent"]
    path.write_bytes(msgspec.json.encode(record))
    opened = registry.open("a").record
    assert (opened.created, opened.parent) == (None, None)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    registry = open_registry(str(tmp_path / "nowhere"))
    with pytest.raises(RegistryError, match=r"Expected a folder of runs, got: No such file.*`pocketrank train --out"):
        registry.names()
    with pytest.raises(RegistryError, match="Expected a folder of runs"):
        registry.activate("a")


def test_a_run_is_added_to_a_folder_by_a_copy(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    registry, run = FolderRegistry(tmp_path / "runs"), Run.open(small_run(tmp_path / "monday").folder)
    assert registry.add(run) == "monday"
    assert registry.open("monday").record == run.record
    with pytest.raises(RegistryError, match="that of a run that is there"):
        registry.add(run)
