"""The audit against a service of advisories on loopback: pip-audit asks it as it asks OSV."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.audit import Verdict, audit, judge

FLAW = {
    "id": "PYSEC-2099-1",
    "aliases": ["CVE-2099-0001"],
    "summary": "It lets everybody in.",
    "modified": "2099-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": "leaky", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}],
            "versions": ["1.0"],
        }
    ],
}


@contextmanager
def _advisories(of: dict[str, Any]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(of.get(asked["package"]["name"], {})).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        server.shutdown()
        thread.join()


def _audit(folder: Path, url: str, packages: str, required: bool = False) -> Verdict:
    (folder / "requirements.txt").write_text(packages)
    arguments = ["-r", str(folder / "requirements.txt"), "--no-deps", "--disable-pip", "--osv-url", url]
    return audit(arguments, ["osv"], required)


def test_a_vulnerability_is_a_failure_and_is_named(tmp_path: Path) -> None:
    with _advisories({"leaky": {"vulns": [FLAW]}}) as url:
        verdict = _audit(tmp_path, url, "leaky==1.0\nsound==2.0\n")
    assert verdict == Verdict(
        1,
        (
            "leaky 1.0: PYSEC-2099-1 (CVE-2099-0001), fixed in 1.1",
            "audit: 1 known vulnerabilities in 2 packages, by osv",
        ),
    )


def test_none_is_a_success(tmp_path: Path) -> None:
    with _advisories({}) as url:
        verdict = _audit(tmp_path, url, "sound==2.0\n")
    assert verdict == Verdict(0, ("audit: 0 known vulnerabilities in 1 packages, by osv",))


def test_no_service_is_a_skip_that_nobody_overlooks_or_a_failure(tmp_path: Path) -> None:
    with _advisories({}) as url:
        pass
    skipped = _audit(tmp_path, url, "sound==2.0\n")
    assert skipped.code == 0
    assert any(line.startswith("AUDIT SKIPPED: no advisory service could be asked") for line in skipped.lines)
    required = _audit(tmp_path, url, "sound==2.0\n", required=True)
    assert required.code == 1
    assert any(line.startswith("AUDIT FAILED") for line in required.lines)


def test_a_service_that_knows_no_package_audits_nothing() -> None:
    """As an index without advisories answers, which pip-audit takes for no vulnerabilities."""
    nothing = {"dependencies": [{"name": "sound", "skip_reason": "Dependency not found on PyPI"}]}
    assert judge([("pypi", nothing), ("osv", "no route")], required=False).lines[2] == "pypi: knows none of them; osv: no route"
    some = {"dependencies": [*nothing["dependencies"], {"name": "other", "version": "1", "vulns": []}]}
    assert judge([("pypi", some)], required=True) == Verdict(
        0, ("audit: not known there, so not audited: sound", "audit: 0 known vulnerabilities in 1 packages, by pypi")
    )


@pytest.mark.parametrize("arguments", [["--no-such-option"]])
def test_a_wrong_argument_is_no_skip(arguments: list[str]) -> None:
    assert audit(arguments, ["osv"]).code == 2
