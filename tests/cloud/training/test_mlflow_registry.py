"""The registry in MLflow, over a real database of it and over a real server, each where it is installed."""

import json
import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

from pocketrank.cloud.training.registry import RegistryError
from pocketrank.cloud.training.registry_opening import open_registry
from pocketrank.cloud.training.run import Run
from tests.cloud.small_published import small_run
from tests.mlflow_server import PROGRAM, mlflow_server

mlflow = pytest.importorskip("mlflow", reason="`pip install 'pocketrank[mlflow]' sqlalchemy alembic`")
pytest.importorskip("sqlalchemy")


class Store(NamedTuple):
    uri: str
    folder: Path
    """Of the runs that were added, under their names."""


@pytest.fixture(scope="module", params=["database", "server"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """MLflow with the runs `monday` and `tuesday`."""
    folder = tmp_path_factory.mktemp("mlflow")
    if request.param == "server" and not PROGRAM.exists():
        pytest.skip("no MLflow server: `make test` installs one")
    with mlflow_server(folder) if request.param == "server" else nullcontext(f"sqlite:///{folder}/mlflow.db") as uri:
        if request.param == "database":
            mlflow.MlflowClient(uri).create_experiment("pocketrank", artifact_location=f"file://{folder}/artifacts")
        _add_runs(uri, folder)
        yield Store(uri, folder)


def _add_runs(uri: str, folder: Path) -> None:
    registry = open_registry(f"mlflow:{uri}#{folder}/local")
    assert (registry.names(), registry.active(), registry.history()) == ([], None, ())
    for seed, name in enumerate(("monday", "tuesday")):
        run = small_run(folder / name, seed=seed, split_version=name)
        (run.folder / "metrics.json").write_text(json.dumps({"models": {"split": {"like": {"auc": 0.7, "auc_std": None}}}}))
        (run.folder / "feedback.db").touch()
        assert registry.add(Run.open(run.folder)) == name


def test_a_run_goes_to_mlflow_and_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    registry = open_registry(f"mlflow:{store.uri}#{tmp_path}/local")
    assert registry.names() == ["monday", "tuesday"]
    opened = registry.open("monday")
    original = store.folder / "monday"
    files = {path.relative_to(opened.folder): path.read_bytes() for path in opened.folder.rglob("*") if path.is_file()}
    assert files == {
        path.relative_to(original): path.read_bytes()
        for path in original.rglob("*")
        if path.is_file() and path.name != "feedback.db"
    }
    assert registry.listed("tuesday").record is not None
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["monday"], "one that is listed is not downloaded"
    assert registry.listed("monday").metrics["models"]["split"]["like"]["auc"] == 0.7
    (run,) = mlflow.MlflowClient(store.uri).search_runs(["1"], "attributes.run_name = 'monday'")
    assert run.data.metrics == {"split.like.auc": 0.7}
    assert run.data.params["data_digest"] == "0" * 64
    with pytest.raises(RegistryError, match="that of a run that is there: monday"):
        registry.add(opened)
    with pytest.raises(RegistryError, match="Expected one of the runs monday, tuesday, got `sunday`"):
        registry.activate("sunday")


def test_another_run_of_the_same_name_is_not_taken_for_it(store: Store, tmp_path: Path) -> None:
    small_run(tmp_path / "monday", split_version="other")
    with pytest.raises(RegistryError, match=r"Expected the run monday of mlflow:.*, got another one"):
        open_registry(f"mlflow:{store.uri}#{tmp_path}").open("monday")


def test_activations_rollbacks_and_the_alias(store: Store, tmp_path: Path) -> None:
    registry, client = open_registry(f"mlflow:{store.uri}#{tmp_path}/local"), mlflow.MlflowClient(store.uri)
    other = pickle.loads(pickle.dumps(registry))
    registry.activate("monday")
    registry.activate("tuesday")
    found = other.active()
    assert found is not None
    assert (found.run, found.former) == ("tuesday", ("monday",))
    assert int(client.get_model_version_by_alias("pocketrank", "active").version) == 2
    assert other.rollback().run == "monday"
    assert int(client.get_model_version_by_alias("pocketrank", "active").version) == 1
    # Somebody moves the alias in MLflow's pages.
    client.set_registered_model_alias("pocketrank", "active", 2)
    assert [one.run for one in registry.history()][-2:] == ["monday", "tuesday"]
    moved = registry.active()
    assert moved is not None
    assert moved.number == found.number + 2
    assert registry.rollback().run == "monday"
    assert [one.run for one in other.history()][-3:] == ["monday", "tuesday", "monday"]


def test_a_server_that_does_not_answer_is_a_registry_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match="Expected an answer of MLflow"):
        open_registry(f"mlflow:http://127.0.0.1:9#{tmp_path}").names()
