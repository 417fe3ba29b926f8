"""`python -m tests.audit`: known vulnerabilities in what is installed, by pip-audit.

pip-audit itself ends well, and says "no known vulnerabilities", when it could look up none of the packages. Here a
vulnerability is a failure, and no advisory service within reach is a skip that nobody overlooks, or a failure with
`AUDIT=required` in the environment. More arguments go to pip-audit, such as `--ignore-vuln ID`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

SERVICES = ("pypi", "osv")
"""Asked in this order until one knows any of the packages."""

_OK, _FOUND, _USAGE = 0, 1, 2
_BAR = "!" * 100


class Verdict(NamedTuple):
    """What an audit comes to."""

    code: int
    lines: tuple[str, ...]


def judge(reports: Sequence[tuple[str, Any]], required: bool) -> Verdict:
    """The verdict on what each service said: pip-audit's JSON, or the last line of its error."""
    for service, report in reports:
        packages = report["dependencies"] if isinstance(report, dict) else []
        known = [package for package in packages if "vulns" in package]
        if not known:
            continue
        lines = [
            f"{package['name']} {package['version']}: {flaw['id']} ({', '.join(flaw['aliases']) or 'no alias'}), "
            f"fixed in {', '.join(flaw['fix_versions']) or 'no version'}"
            for package in known
            for flaw in package["vulns"]
        ]
        unknown = [package["name"] for package in packages if "vulns" not in package]
        told = f"audit: {len(lines)} known vulnerabilities in {len(known)} packages, by {service}"
        skipped = (f"audit: not known there, so not audited: {', '.join(unknown)}",) if unknown else ()
        return Verdict(_FOUND if lines else _OK, (*lines, *skipped, told))
    why = "; ".join(f"{service}: {'knows none of them' if isinstance(report, dict) else report}" for service, report in reports)
    what = "AUDIT FAILED" if required else "AUDIT SKIPPED"
    lines = [_BAR, f"{what}: no advisory service could be asked, so nothing is known of any package.", why[:500], _BAR]
    return Verdict(_FOUND if required else _OK, tuple(lines))


def audit(arguments: Sequence[str], services: Sequence[str] = SERVICES, required: bool = False) -> Verdict:
    """Ask the services, and judge."""
    reports: list[tuple[str, Any]] = []
    for service in services:
        command = [
            str(Path(sys.executable).with_name("pip-audit")),
            *("--format", "json", "--progress-spinner", "off", "--timeout", "10", "-s", service, *arguments),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == _USAGE:
            return Verdict(_USAGE, (done.stderr.strip(),))
        try:
            report = json.loads(done.stdout)
        except ValueError:
            report = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        reports.append((service, report))
        if isinstance(report, dict) and any("vulns" in package for package in report["dependencies"]):
            break
    return judge(reports, required)


if __name__ == "__main__":
    verdict = audit(["--skip-editable", *sys.argv[1:]], required=os.environ.get("AUDIT") == "required")
    print("\n".join(verdict.lines), file=sys.stderr if verdict.code else sys.stdout)
    sys.exit(verdict.code)
