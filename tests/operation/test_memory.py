"""What images occupied goes back to the system, and what a start has made is not looked through again and again."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from app import cli
from app.worker import process
from tests.app_server import running_server

ROOT = Path(__file__).resolve().parents[2]
MEGABYTES = 200
PROGRAM = f"""
import sys
from pathlib import Path
from app.allocator import return_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

return_freed_memory()
bytearray(3 * 2**20)  # freed at once: glibc then takes blocks of this size for common
before = resident()
images, small = [], []
for _ in range({MEGABYTES}):
    images.append(b"x" * 2**20)
    small.append(bytearray(1_000))
assert resident() - before > {MEGABYTES} * 0.9
images.clear()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_images_occupied_goes_back_to_the_system() -> None:
    command = [sys.executable, "-c", PROGRAM]
    kept = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert float(kept) < MEGABYTES / 10


@pytest.mark.parametrize("command", [cli.migrate, cli.doctor])
def test_each_command_tells_the_allocator_before_it_loads_anything(
    command: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def run(**_: object) -> None:
        steps.append("run")

    def load(name: str) -> SimpleNamespace:
        steps.append(f"load {name}")
        return SimpleNamespace(run=run)

    monkeypatch.setattr(cli, "return_freed_memory", lambda: steps.append("tell the allocator"))
    monkeypatch.setattr(cli, "load_command", load)
    command()
    assert steps == ["tell the allocator", f"load {command.__name__}", "run"]


def test_a_start_leaves_what_it_has_made_out_of_collections_once_all_is_warm(
    database_url: str, provider_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    warm_up = process.warm_up

    async def warming_up() -> None:
        await warm_up()
        steps.append("warm up")

    monkeypatch.setattr("app.worker.process.warm_up", warming_up)
    monkeypatch.setattr("app.main.freeze", lambda: steps.append("freeze"))
    with running_server(database_url, provider_url, tmp_path) as server:
        assert server.sign_up().http.get("/readyz").status_code == 200
    assert steps == ["warm up", "freeze"]
