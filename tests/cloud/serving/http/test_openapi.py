"""The served OpenAPI text against the live server, by schemathesis: whatever is sent, no 5xx and nothing undocumented."""

import os
import subprocess
import sys
import time
from pathlib import Path

from pocketrank.cloud.serving.access.limits import SCOPES, LimitsConfig
from pocketrank.cloud.serving.access.tokens import issue_token
from pocketrank.cloud.serving.config import ServingConfig
from tests.cloud.serving.live import Live, live, write_bundle
from tests.cloud.small_published import small_run

ROOT = Path(__file__).parents[4]
FILES = {"spec.json": b"{}", "models/split.fp32.onnx": b"model" * 1000}

# The contract says more than a JSON schema of it: one version, sizes, lengths, integers of 64 bits. So not all that the
# text allows is taken, and this check says nothing; all others are made.
EXCLUDED = "positive_data_acceptance"
_EXAMPLES = 15
_TIMEOUT_S = 240


def _hold_to_its_text(server: Live, folder: Path, *options: str) -> str:
    """Run schemathesis, the same requests each time, and return what it says."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"http://127.0.0.1:{server.port}/openapi.json",
        "--phases", "examples,coverage,fuzzing", "--max-examples", str(_EXAMPLES), "--generation-deterministic",
        "--exclude-checks", EXCLUDED, "--request-timeout", "30", "--no-shrink", "--no-color", *options,
    ]  # fmt: skip
    env = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.cloud.serving.schemathesis_hooks", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    # In a folder of its own, because it keeps what it learned beside where it runs.
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_whatever_is_sent(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    token = issue_token(tokens, SCOPES, now_ms=time.time_ns() // 1_000_000, lasts_ms=3_600_000).token
    config = ServingConfig(tokens=tokens, limits=LimitsConfig(device=None, publish=None, admin=None))
    run, bundle = small_run(tmp_path / "run").folder, write_bundle(tmp_path / "bundle", FILES)
    with live(run, tmp_path / "feedback.db", bundle, config=config) as server:
        output = _hold_to_its_text(server, tmp_path, "-H", f"Authorization: Bearer {token}")
        operations = sum(len(methods) for methods in server.send("GET", "/openapi.json").json()["paths"].values())
        assert f"Tested: {operations}" in output
        assert server.send("GET", "/readyz").json()["status"] == "ready"
