"""Looks for known weaknesses in our code, our workflows and our packages; ends non-zero when it finds one."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CODE = ("app", "migrations", "offline", ".ci")
LOCK = "requirements.lock"


def main() -> int:
    faults = [*check_code(), *check_workflows(), *check_packages()]
    for fault in faults:
        print(f"FAULT {fault}")
    return 1 if faults else 0


def check_code() -> list[str]:
    folders = [folder for folder in CODE if (ROOT / folder).is_dir()]
    done = _run("bandit", "--quiet", "--format", "json", "--configfile", "pyproject.toml", "--recursive", *folders)
    return judge_code(_json(done))


def check_workflows() -> list[str]:
    inputs = sorted([*ROOT.glob(".github/workflows/*.y*ml"), *ROOT.glob(".github/dependabot.y*ml")])
    if not inputs:
        print("zizmor: there is no workflow to check")
        return []
    options = ("--offline", "--strict-collection", "--quiet", "--format", "json")
    done = _run("zizmor", *options, *(str(path) for path in inputs))
    return judge_workflows(_json(done), len(inputs))


def check_packages() -> list[str]:
    done = _run(
        *("pip-audit", "--strict", "--vulnerability-service", "osv", "--progress-spinner", "off", "--format", "json"),
        *("--disable-pip", "--require-hashes", "--requirement", LOCK),
    )
    if not done.stdout.strip() and "ConnectionError" in done.stderr:
        print("pip-audit: NOT AUDITED: no network to the advisory database")
        return []
    return judge_packages(_json(done), installed={package.name for package in distributions()})


def judge_code(report: Any) -> list[str]:
    """Faults in bandit's report: whatever it rates high, and a run that looked at nothing."""
    totals = report["metrics"]["_totals"]
    counts = ", ".join(f"{totals[f'SEVERITY.{level}']:.0f} {level.lower()}" for level in ("HIGH", "MEDIUM", "LOW"))
    print(f"bandit: {counts} in {totals['loc']:.0f} lines")
    if not totals["loc"] or report["errors"]:
        return [f"bandit could not read all of the code: {report['errors'] or 'no lines'}"]
    return [
        f"{found['filename']}:{found['line_number']}: {found['issue_text']}"
        for found in report["results"]
        if found["issue_severity"] == "HIGH"
    ]


def judge_workflows(report: Any, files: int) -> list[str]:
    """Faults in zizmor's report: whatever it rates high."""
    high = [found for found in report if found["determinations"]["severity"] == "High"]
    print(f"zizmor: {len(high)} high, {len(report) - len(high)} lower in {files} file(s) of .github")
    return [f"{found['ident']}: {found['desc']}" for found in high]


def judge_packages(report: Any, installed: Iterable[str]) -> list[str]:
    """Faults in pip-audit's report: known vulnerabilities, and packages installed but not looked at."""
    audited = {_normal(package["name"]) for package in report["dependencies"] if "skip_reason" not in package}
    missed = sorted({_normal(name) for name in installed} - audited - {"easel"})
    print(f"pip-audit: {len(audited)} packages audited, {len(missed)} missed")
    faults = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {found['fix_versions'] or 'no release yet'}"
        for package in report["dependencies"]
        for found in package.get("vulns", [])
    ]
    if missed:
        faults.append(f"installed but not audited: {', '.join(missed)}; if {LOCK} does not name them, delete .venv")
    if not audited:
        faults.append("the advisory database answered, but no package was audited")
    return faults


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name(command[0])
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(
        [tool, *command[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def _json(done: subprocess.CompletedProcess[str]) -> Any:
    """The report a tool printed; its findings make it exit non-zero, so only the report tells whether it ran."""
    try:
        return json.loads(done.stdout)
    except ValueError:
        sys.exit(f"{Path(done.args[0]).name} gave no report (exit {done.returncode}):\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
