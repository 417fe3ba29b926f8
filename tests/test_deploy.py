"""What `deploy/` says against what there is: options, routes, ports, versions, schemas. No Docker engine and no cluster."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.routing import APIRoute
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.main import get_command

from pocketrank.cloud.pipeline.config import PipelineConfig
from pocketrank.cloud.serving.access.tokens import decode_tokens
from pocketrank.cloud.serving.process.server import ServerConfig
from pocketrank.cloud.serving.process.workers import WorkersConfig
from pocketrank.cloud.serving.routes.health import Health, health_router
from pocketrank.sdk_demo.cli.app import app

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def objects() -> list[dict[str, Any]]:
    return [one for path in MANIFESTS for one in yaml.safe_load_all(path.read_text()) if one["kind"] != "Kustomization"]


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in objects() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def container() -> dict[str, Any]:
    (only,) = named("StatefulSet", "page")["spec"]["template"]["spec"]["containers"]
    return dict(only)


def dockerfile(instruction: str) -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    return re.findall(rf"^\s*{instruction} (.*)$", text, re.MULTILINE)


def commands() -> dict[str, list[str]]:
    """Each command line that starts a server, as words."""
    return {
        "Dockerfile": yaml.safe_load(dockerfile("CMD")[-1]),
        "compose": COMPOSE["x-page"]["command"],
        "kubernetes": container()["args"],
    }


@pytest.mark.parametrize("where", commands())
def test_every_option_is_one_that_serve_has(where: str) -> None:
    verb, *words = commands()[where]
    command = get_command(app).commands[verb]  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in parameter.opts}
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert len(options) >= 6
    assert options <= known


def test_serve_parses_the_command_lines_as_they_are() -> None:
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    for _, *words in commands().values():
        context = command.make_context("serve", list(words))
        assert context.params["host"] == "0.0.0.0"
        assert context.params["workers"] == 2
        assert str(context.params["feedback_db"]).startswith("/data/feedback/")
        assert context.params["tokens"] is not None
        assert context.params["log_format"] == "json"


def test_probes_ask_for_routes_that_there_are_on_the_port_that_is_served() -> None:
    server = container()
    (port,) = server["ports"]
    assert (port["name"], port["containerPort"]) == ("http", 8080)
    routes = {route.path for route in health_router(Health()).routes if isinstance(route, APIRoute)}
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        get = server[probe]["httpGet"]
        assert (get["path"], get["port"]) == (path, "http")
        assert path in routes
    assert dockerfile("ENV")[-1].endswith("ORT_DISABLE_TELEMETRY=1")  # onnxruntime would tell its maker of each session
    (check,) = dockerfile("HEALTHCHECK.*CMD")
    assert "http://127.0.0.1:8080/livez" in check
    assert dockerfile("EXPOSE") == ["8080"]
    nginx = (DEPLOY / "nginx.conf").read_text()
    assert re.findall(r"server (page-\d):(\d+);", nginx) == [("page-1", "8080"), ("page-2", "8080")]
    assert {one["targetPort"] for name in ("page", "page-each") for one in named("Service", name)["spec"]["ports"]} == {"http"}


def test_every_mount_and_path_fits() -> None:
    spec = named("StatefulSet", "page")["spec"]
    pod = spec["template"]["spec"]
    volumes = {one["name"] for one in pod["volumes"]} | {one["metadata"]["name"] for one in spec["volumeClaimTemplates"]}
    mounts = {one["name"]: one["mountPath"] for one in container()["volumeMounts"]}
    assert set(mounts) == volumes
    given = dict(word.split("=", 1) for word in container()["args"] if "=" in word)
    assert given["--run"] == mounts["run"]
    assert given["--pipeline"] == f"{mounts['pipeline']}/pipeline.toml"
    assert given["--tokens"] == f"{mounts['tokens']}/tokens.json"
    assert given["--feedback-db"].startswith(mounts["feedback"])
    assert pod["securityContext"]["runAsNonRoot"]
    assert dockerfile("USER") == [f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"]
    targets = {one.removesuffix(":ro").rpartition(":")[2] for one in COMPOSE["x-page"]["volumes"]}
    assert targets >= {"/data/run", "/data/feedback", "/data/tokens", "/etc/pocketrank/pipeline.toml"}


def test_there_is_time_to_end_in_order() -> None:
    pod = named("StatefulSet", "page")["spec"]["template"]["spec"]
    waits = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > waits + WorkersConfig().stop_s
    assert int(COMPOSE["x-page"]["stop_grace_period"].removesuffix("s")) > WorkersConfig().stop_s
    assert WorkersConfig().stop_s > ServerConfig().grace_s + ServerConfig().drain_s


def test_selectors_find_the_server_and_the_scaler_scales_it() -> None:
    labels = named("StatefulSet", "page")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        named("StatefulSet", "page")["spec"]["selector"]["matchLabels"],
        named("Service", "page")["spec"]["selector"],
        named("Service", "page-each")["spec"]["selector"],
        named("PodDisruptionBudget", "page")["spec"]["selector"]["matchLabels"],
        named("NetworkPolicy", "page")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert named("StatefulSet", "page")["spec"]["serviceName"] == "page-each"
    target = named("HorizontalPodAutoscaler", "page")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", "page")


def test_the_network_policy_lets_out_to_what_the_pipeline_names() -> None:
    config = PipelineConfig.open(DEPLOY / "kubernetes" / "pipeline.toml")
    out = {port["port"] for rule in named("NetworkPolicy", "page")["spec"]["egress"] for port in rule["ports"]}
    urls = [config.store.url, config.index["items"].url]
    assert {int(url.rsplit(":", 1)[1]) for url in urls if url} <= out
    assert len(out) == 4


@pytest.mark.parametrize("folder", [DEPLOY, DEPLOY / "kubernetes"])
def test_pipeline_files_are_ones_that_the_server_reads(folder: Path) -> None:
    config = PipelineConfig.open(folder / "pipeline.toml")
    assert config.store.url is not None
    assert config.store.url.startswith("valkey-cluster://")
    assert config.index["items"].kind == "qdrant"


def test_the_placeholder_lets_nobody_in() -> None:
    text = named("Secret", "tokens")["stringData"]["tokens.json"]
    assert decode_tokens(text.encode(), Path("tokens.yaml")) == ()


def test_compose_names_only_services_and_volumes_that_it_has() -> None:
    services, volumes = COMPOSE["services"], COMPOSE["volumes"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for mount in service.get("volumes", []):
            source = re.sub(r"^\$\{[^}]*\}", "./given", mount).split(":")[0]
            assert source.startswith(".") or source in volumes
            if source.startswith("./") and source != "./given":
                assert (DEPLOY / source).is_file()
    config = PipelineConfig.open(DEPLOY / "pipeline.toml")
    assert config.store.url is not None
    hosts = [part.split(":")[0] for part in config.store.url.partition("://")[2].split(",")]
    assert set(hosts) <= set(services)
    assert all(publish.startswith("127.0.0.1:") for service in services.values() for publish in service.get("ports", []))


def test_the_image_installs_serving_within_the_pins_and_nothing_of_training() -> None:
    (install,) = [line for line in dockerfile("RUN") if "pip install" in line]
    assert install.endswith("pip install --constraint constraints.txt '.[serve]'")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def libraries(extra: str) -> set[str]:
        names: set[str] = set()
        for wanted in map(Requirement, extras[extra]):
            own = wanted.name == "pocketrank"
            names |= set().union(*map(libraries, wanted.extras)) if own else {canonicalize_name(wanted.name)}
        return names

    assert {"faiss-cpu", "fastapi", "onnxruntime", "typer"} <= libraries("serve")
    assert not libraries("serve") & {"torch", "pyarrow", "polars", "onnx", "safetensors", "matplotlib", "tensorboard"}
    assert libraries("serve") <= {canonicalize_name(pin.name) for pin in pins()}


def test_pins_are_exact_versions_that_the_package_index_serves() -> None:
    for pin in pins():
        assert re.fullmatch(r"==[^+*]+", str(pin.specifier)), f"{pin}: a local version such as 2.13.0+cpu is on no index"


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_what_serving_imports_is_in_the_image() -> None:
    """In a process of its own: every module of the server, and the libraries that came with them."""
    code = """
import importlib, pkgutil, sys
from importlib.metadata import packages_distributions
from pocketrank.cloud import pages, pipeline, published, ranking, reranking, retrieval, serving, stores, streams, vectors
for package in (pages, pipeline, published, ranking, reranking, retrieval, serving, stores, streams, vectors):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
import pocketrank.sdk_demo.cli.app, pocketrank.sdk_demo.cli.serve
import pocketrank.device.session.session, pocketrank.device.bundle.signing
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    heavy = {"torch", "pyarrow", "polars", "sklearn", "jaxtyping", "onnx", "safetensors", "matplotlib", "tensorboard"}
    assert not heavy & set(run.stdout.split())


def test_every_folder_that_the_image_copies_is_there_and_let_through() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    copied = [word for line in dockerfile("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert copied
    for path in copied:
        assert (ROOT / path).exists()
        assert f"!{path}" in ignored


def test_the_manifests_fit_the_schemas_of_kubernetes() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for version in ("1.33", "1.36"):
        for one in objects():
            validate.validate(one, version, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
def test_kubectl_builds_the_manifests() -> None:
    run = subprocess.run(["kubectl", "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    built = [one for one in yaml.safe_load_all(run.stdout) if one]
    assert len(built) == len(objects()) + 1  # the pipeline's ConfigMap
    (config,) = [one for one in built if one["kind"] == "ConfigMap"]
    (server,) = [one for one in built if one["kind"] == "StatefulSet"]
    volumes = {one["name"]: one for one in server["spec"]["template"]["spec"]["volumes"]}
    assert volumes["pipeline"]["configMap"]["name"] == config["metadata"]["name"] != "pipeline"
    assert config["data"]["pipeline.toml"] == (DEPLOY / "kubernetes" / "pipeline.toml").read_text()
    (policy,) = [one for one in built if one["kind"] == "NetworkPolicy"]
    assert "app.kubernetes.io/name" not in str(policy["spec"])  # Valkey and Qdrant do not have our name
